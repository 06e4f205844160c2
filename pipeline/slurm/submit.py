"""`esolm submit`: check everything, then queue the whole chain or nothing."""

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from esolm.data_prep.cleaning.stages import with_absolute_inputs
from esolm.data_prep.remote import is_url, shown
from esolm.data_prep.sources import absolute
from esolm.model.settings import setting_problems
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.completion import changed_settings
from esolm.pipeline.run.config import load_config, to_yaml
from esolm.pipeline.run.directory import REVISION, RunDirectory, git_revision
from esolm.pipeline.run.experiment import problems_before_data, resolve
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.run.sources import named_sources, source_folders, source_paths
from esolm.pipeline.slurm import client
from esolm.pipeline.slurm.chain import CANCELLED, Chain, ChainJob, refuse_if_live, write_chain
from esolm.pipeline.slurm.check import cluster_problems
from esolm.pipeline.slurm.existing import (
    access_problems,
    evaluation_problems,
    is_merged,
    is_prepared,
    resume_problems,
)
from esolm.pipeline.slurm.gpus import gpu_problems
from esolm.pipeline.slurm.lint import lint_script
from esolm.pipeline.slurm.profile import (
    ClusterProfile,
    load_profile,
    time_problems,
    warning_problems,
)
from esolm.pipeline.slurm.render import mounted_folders, render
from esolm.pipeline.slurm.serving import serving_notes, serving_problems
from esolm.pipeline.slurm.stages import STAGES, Job, Paths, plan_jobs, prep_problems

PACKAGE = "esolm"
_PLAIN_PATH = re.compile(r"[\w./+@=-]+")
_NODES = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Submission:
    """All that a submit would queue. scripts: by stage, in the order of the chain."""

    config: RunConfig
    cluster: str
    revision: str
    paths: Paths
    jobs: list[Job]
    scripts: dict[str, str]
    notes: list[str]
    in_container: bool


def prepare(config_path: Path, overrides: list[str], cluster: str, stages: list[str]) -> Submission:
    """Checks configuration, profile and cluster, and renders the scripts; writes nothing.

    Raises ConfigError with every problem at once.
    """
    config, profile = _load(config_path, overrides, cluster)
    fewest, most, problems = _node_range(config)
    problems = _stage_problems(stages) + profile.problems() + problems
    problems += _job_problems(config, profile, stages)
    if refused := access_problems(Path(config.run.dir)):
        raise ConfigError(problems + refused)  # what is in there cannot be read, either
    stages, notes = _without_prepared(config, stages)
    if "prep" in stages:
        problems += prep_problems(config, stages)
    data_follows = "prep" in stages and not is_prepared(config)
    if "evaluate" in stages and not data_follows:
        problems += evaluation_problems(config)
    usable: list[int] = []
    if "train" in stages and profile.ranks_per_node > 0:
        usable, found = _usable_nodes(config, profile, fewest, most, data_follows)
        problems += found or gpu_problems(config, profile, fewest)
    paths = Paths(Path(config.run.dir), _next_submission(Path(config.run.dir)))
    jobs, skipped = plan_jobs(config, stages, paths) if not problems else ([], [])
    jobs, notes = _without_finished(config, jobs, notes + skipped + serving_notes(config, stages))
    if "train" in stages:
        with_effect, without = changed_settings(RunDirectory(config.run.dir), config)
        notes += [f"changed since the last start: {change}" for change in with_effect + without]
    reason = client.why_unavailable()
    if reason is None:
        problems += cluster_problems(config, profile, stages, most)
    else:
        notes.append(f"{reason}: nothing was checked against a cluster")
    if problems:
        raise ConfigError(problems)
    revision = git_revision()
    scripts = {job.stage: render(job, config, profile, paths, usable, revision) for job in jobs}
    _check_scripts(scripts, ask_slurm=reason is None)
    in_container = profile.container.runtime != "none"
    return Submission(config, cluster, revision, paths, jobs, scripts, notes, in_container)


def _job_problems(config: RunConfig, profile: ClusterProfile, stages: list[str]) -> list[str]:
    """What is wrong with what the run asks of the cluster, before anything is looked at."""
    problems = []
    if config.slurm.time:
        problems += time_problems("slurm.time", config.slurm.time)
    if "train" in stages:
        problems += warning_problems(config.slurm.time or profile.time, profile.warn_seconds)
    problems += setting_problems(config.slurm, "slurm.")
    if not _PLAIN_PATH.fullmatch(config.run.dir):
        problems.append(f"run.dir {config.run.dir} holds characters that Slurm would misread")
    problems += serving_problems(config, profile, stages)
    return problems + _mount_problems(config, profile, stages)


def _load(
    config_path: Path, overrides: list[str], cluster: str
) -> tuple[RunConfig, ClusterProfile]:
    """Raises ConfigError with what is wrong in either."""
    problems = []
    try:
        config = _absolute(load_config(config_path, overrides))
    except ConfigError as error:
        problems += error.problems
    try:
        profile = load_profile(cluster)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config, profile


def submit(submission: Submission) -> Chain:
    """Queues the chain, each job after the one before it; if one is refused, none stays.

    Raises ConfigError if the run is live already, SlurmError if sbatch fails.
    """
    reason = client.why_unavailable()
    if reason is not None:
        raise ConfigError(f"{reason}: only --dry-run is possible")
    with _locked(submission.paths):
        refuse_if_live(submission.paths.run)
        _refuse_if_training_here(submission.paths.run)
        _write(submission)
        queued: list[ChainJob] = []
        try:
            for job in submission.jobs:
                queued.append(_queue(submission.paths, job, queued))
        except client.SlurmError:
            if queued:
                client.cancel([job.job_id for job in queued])
            raise
        chain = Chain(
            run=str(submission.paths.run),
            cluster=submission.cluster,
            revision=submission.revision,
            submitted=datetime.now(UTC).isoformat(timespec="seconds"),
            submission=str(submission.paths.submission),
            jobs=queued,
        )
        write_chain(chain)
    return chain


def _queue(paths: Paths, job: Job, queued: list[ChainJob]) -> ChainJob:
    after = queued[-1].job_id if queued else None
    job_id = client.submit(paths.submission / f"{job.stage}.sbatch", after)
    name = f"{job.stage}-{job_id}{'_*' if job.array else ''}.log"
    return ChainJob(job.stage, job_id, after, len(job.array), str(paths.slurm / "logs" / name))


def _absolute(config: RunConfig) -> RunConfig:
    """Every path from the root on: jobs run in a folder of their own."""
    config.run.dir = str(Path(config.run.dir).resolve())
    for source, named in zip(config.data.sources, named_sources(config.data), strict=False):
        source.path, source.name = _whole(source.path), named.name
    config.data.path, config.data.cache_dir = map(_whole, (config.data.path, config.data.cache_dir))
    config.prep.inputs = [absolute(given) for given in config.prep.inputs]
    config.prep.clean = [with_absolute_inputs(words) for words in config.prep.clean]
    if config.prep.tokenizer:
        config.prep.tokenizer = str(Path(config.prep.tokenizer).resolve())
    config.train.init_from = _whole(config.train.init_from)
    return config


def _whole(path: str) -> str:
    """A path from the root on; an address, or none, as it is."""
    return path if not path or is_url(path) else str(Path(path).resolve())


def _mount_problems(config: RunConfig, profile: ClusterProfile, stages: list[str]) -> list[str]:
    """Paths that a container's runtime would take apart."""
    folders = [folder for stage in stages for folder in mounted_folders(config, profile, stage)]
    return [
        f"{folder} cannot be mounted into a container: it holds other characters than letters, "
        "digits and . / + @ = - _"
        for folder in dict.fromkeys(folders)
        if folder != config.run.dir and not all(map(_PLAIN_PATH.fullmatch, folder.split(":")))
    ]


def _stage_problems(stages: list[str]) -> list[str]:
    known = ", ".join(STAGES)
    problems = [
        f"'{stage}' is no stage; choose from {known}" for stage in stages if stage not in STAGES
    ]
    if not stages:
        problems.append(f"no stage is given; choose from {known}")
    return problems


def _node_range(config: RunConfig) -> tuple[int, int, list[str]]:
    """Fewest and most nodes, and what is wrong with them."""
    match = _NODES.fullmatch(config.slurm.nodes)
    fewest = int(match[1]) if match else 0
    most = int(match[2] or fewest) if match else 0
    if 1 <= fewest <= most:
        return fewest, most, []
    return 1, 1, [f"slurm.nodes is '{config.slurm.nodes}'; write a number or MIN-MAX"]


def _usable_nodes(
    config: RunConfig, profile: ClusterProfile, fewest: int, most: int, data_follows: bool
) -> tuple[list[int], list[str]]:
    """Numbers of nodes that layout and batch divide by, most first, and what is wrong."""
    per_node = profile.ranks_per_node
    found = {n: problems_before_data(config, n * per_node) for n in range(fewest, most + 1)}
    usable = [nodes for nodes, problems in found.items() if not problems]
    problems = found[fewest]
    if problems and usable:
        counts = ", ".join(map(str, usable))
        problems = [*problems, f"slurm.nodes could begin with {usable[0]} (of {counts} that fit)"]
    if not problems and not data_follows:
        try:
            problems = resume_problems(resolve(config, fewest * per_node))
        except ConfigError as error:
            problems = error.problems
    return usable[::-1], problems


def _without_prepared(config: RunConfig, stages: list[str]) -> tuple[list[str], list[str]]:
    """Leaves out stage prep of a dataset that is whole, where nobody names a text to make it of."""
    names_text = config.prep.inputs or config.prep.from_python_stdlib
    if "prep" not in stages or names_text or not is_merged(config):
        return stages, []
    note = f"prep: {', '.join(map(shown, source_paths(config.data)))} is finished and is skipped"
    return [stage for stage in stages if stage != "prep"], [note]


def _without_finished(
    config: RunConfig, jobs: list[Job], notes: list[str]
) -> tuple[list[Job], list[str]]:
    """Leaves out the training of a run that is done: it is never started again."""
    directory = RunDirectory(config.run.dir)
    if not directory.is_finished(config.train.steps):
        return jobs, notes
    notes = [*notes, f"train: {directory.done} says that all steps are done; it is skipped"]
    return [job for job in jobs if job.stage != "train"], notes


def _check_scripts(scripts: dict[str, str], ask_slurm: bool) -> None:
    """Own lint first, then sbatch's opinion; every problem of every script at once."""
    problems = []
    for stage, script in scripts.items():
        problems += lint_script(f"{stage}.sbatch", script)
        if ask_slurm:
            refusal = client.test_only(script)
            if refusal and "not available" in refusal:
                refusal += " (it says so, too, while the nodes that would do are drained or down)"
            problems += [f"{stage}.sbatch: {refusal}"] if refusal else []
    if problems:
        raise ConfigError(problems)


def _next_submission(run: Path) -> Path:
    taken = [int(path.name[-3:]) for path in (run / "slurm").glob("submission_[0-9][0-9][0-9]")]
    return run / "slurm" / f"submission_{max(taken, default=0) + 1:03d}"


@contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    """Two submits of one run at once would both find it idle."""
    paths.slurm.mkdir(parents=True, exist_ok=True)
    with (paths.slurm / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{paths.run} is being submitted by someone else") from None
        yield


def _refuse_if_training_here(run: Path) -> None:
    """Raises ConfigError if a process that is no job of this chain trains the run."""
    directory = RunDirectory(run)
    if directory.path.joinpath(".lock").exists():
        directory.lock()
        directory.unlock()


def _write(submission: Submission) -> None:
    """Configuration, code and scripts of this submit, kept for as long as the run is."""
    paths = submission.paths
    for folder in ("logs", "events", "health"):
        (paths.slurm / folder).mkdir(exist_ok=True)
    (paths.slurm / CANCELLED).unlink(missing_ok=True)
    paths.code.mkdir(parents=True)
    paths.config.write_text(to_yaml(submission.config))
    if submission.in_container:  # what a job is yet to make has to be there to be mounted
        config = submission.config
        for folder in (*source_folders(config.data), config.prep.tokenizer):
            Path(folder).mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parents[2], paths.code / PACKAGE, ignore=ignored)
    (paths.code / PACKAGE / REVISION).write_text(submission.revision + "\n")
    for stage, script in submission.scripts.items():
        path = paths.submission / f"{stage}.sbatch"
        path.write_text(script)
        path.chmod(0o755)
