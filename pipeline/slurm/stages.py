"""From a run and a cluster to the jobs of its chain: what each runs, asks for and waits for."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from esolm.data_prep.comparing import CHOOSE, COMPARE
from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import TokenizeJob, check_settings
from esolm.data_prep.manifest import MANIFEST_NAME
from esolm.data_prep.passes import passes_of
from esolm.data_prep.remote import is_url, shown
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizers import has_tokenizer, load_tokenizer
from esolm.model.settings import setting_problems
from esolm.pipeline.data.index import BEST_FIT
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.slurm.existing import is_prepared
from esolm.pipeline.slurm.profile import ClusterProfile

STAGES = ("prep", "train", "evaluate", "export", "serve")
# What runs on the partition of training; the rest on that for jobs without GPUs.
GPU_STAGES = ("train", "evaluate", "serve")
PURPOSES = {
    "compare": "Cleans one part of the corpus and writes down what its documents are known by.",
    "choose": "Finds in one part of that the documents that repeat an earlier one.",
    "prep": "Turns one part of the corpus into token tars.",
}
"""Of the job arrays of a preparation, in order; the last alone if documents are not compared."""
FEWEST_PIECES = 260


@dataclass(frozen=True)
class Job:
    """One sbatch script. command: what follows `esolm`, as shell words.

    array: the tasks of a job array, empty for a plain job.
    """

    stage: str
    purpose: str
    command: str
    array: tuple[int, ...] = ()


@dataclass(frozen=True)
class Paths:
    """Where a run keeps what belongs to its jobs; `submission` is of one submit."""

    run: Path
    submission: Path

    @property
    def slurm(self) -> Path:
        return self.run / "slurm"

    @property
    def bundle(self) -> Path:
        return bundle_of(self.run)

    @property
    def config(self) -> Path:
        return self.submission / "config.yaml"

    @property
    def code(self) -> Path:
        return self.submission / "code"


def bundle_of(run: Path) -> Path:
    """Where stage export puts it."""
    return run / "bundle"


def plan_jobs(config: RunConfig, stages: list[str], paths: Paths) -> tuple[list[Job], list[str]]:
    """The jobs of the chain in their order, and what is skipped because it is done already.

    Raises DataError if the corpus cannot be what `prep` says.
    """
    jobs: list[Job] = []
    notes: list[str] = []
    if "prep" in stages:
        jobs, notes = _prep_jobs(config)
    if "train" in stages:
        train = f"train {_words(paths.config)}"
        jobs.append(Job("train", "Trains, or resumes where the run was.", train))
    if "evaluate" in stages:
        evaluate = f"evaluate {_words(paths.run)} {_words(config.data.path)}"
        purpose = "Measures the trained network on the validation split."
        jobs.append(Job("evaluate", purpose, evaluate))
    if "export" in stages:
        export = f"export {_words(paths.run)} --out {_words(paths.bundle)} --overwrite"
        jobs.append(
            Job("export", "Turns the newest checkpoint into a self-verified bundle.", export)
        )
    if "serve" in stages:
        purpose = "Serves the bundle, until its time is over."
        jobs.append(Job("serve", purpose, _serve_command(config, paths)))
    return jobs, notes


def _serve_command(config: RunConfig, paths: Paths) -> str:
    serve = config.serve
    command = f"serve {_words(paths.bundle)} --name {_words(paths.run.name)}"
    command += f" --host {_words(serve.host)} --port {serve.port}"
    command += f" --rows {serve.rows} --queue {serve.queue}"
    return command + (f" --replicas {serve.replicas}" if serve.replicas > 1 else "")


def _prep_jobs(config: RunConfig) -> tuple[list[Job], list[str]]:
    """Tokenizer, array and merge, each only as far as it is still to be done."""
    prep, data = config.prep, Path(config.data.path)
    inputs = [*prep.inputs, *(["--from-python-stdlib"] if prep.from_python_stdlib else [])]
    corpus = f"{_words(*inputs)} --text-key {_words(prep.text_key)}"
    corpus += f" --on-bad-document {prep.on_bad_document} --format {_words(prep.format)}"
    corpus += f" --max-document-bytes {prep.max_document_bytes}"
    corpus += "" if prep.max_bad < 0 else f" --max-bad {prep.max_bad}"
    jobs = []
    if not has_tokenizer(Path(prep.tokenizer)):
        train = f"prep tokenizer {corpus} --vocab-size {prep.vocab_size}"
        train += f" --max-sentences {prep.max_sentences} --out {_words(prep.tokenizer)}"
        jobs.append(Job("tokenizer", "Trains the tokenizer.", train))
    missing = _missing_tasks(config)
    if missing["prep"]:
        tokenize = f"prep tokenize {corpus} --tokenizer {_words(prep.tokenizer)}"
        tokenize += f" --out {_words(data)} --valid-fraction {prep.valid_fraction}"
        tokenize += f" --shard-tokens {prep.shard_tokens} --tasks {prep.tasks}"
        tokenize += f" --id-key {_words(prep.id_key)}" if prep.id_key else ""
        tokenize += "".join(f" --metadata {_words(name)}" for name in prep.metadata)
        tokenize += "".join(f" --clean {_words(stage)}" for stage in prep.clean)
        tokenize += f" --dedup {prep.dedup}" if prep.dedup != "task" else ""
        tokenize += ' --task "$SLURM_ARRAY_TASK_ID"'
        for stage, tasks in missing.items():
            command = tokenize if stage == "prep" else f"{tokenize} --pass {stage}"
            jobs.append(Job(stage, PURPOSES[stage], command, tuple(tasks)))
    if missing["prep"] or not (data / MANIFEST_NAME).exists():
        merge = "Checks that every part is complete and writes the dataset's manifest."
        jobs.append(Job("merge", merge, f"prep merge {_words(data)}"))
    if config.data.packing == BEST_FIT and not is_prepared(config):
        command = f"prep pack {_words(data)} --seq-len {config.train.seq_len}"
        command += ' --workers "$SLURM_CPUS_PER_TASK"'
        pack = "Makes rows of whole documents, for data.packing best_fit."
        jobs.append(Job("pack", pack, command))
    done = prep.tasks - len(missing["prep"])
    notes = [f"prep: {done} of {prep.tasks} tasks are finished and are skipped"] if done else []
    return jobs, notes


def _missing_tasks(config: RunConfig) -> dict[str, list[int]]:
    """Tasks without a complete result, of each job array that has any, and of the last.

    Raises DataError if inputs are missing or the dataset was begun with other settings.
    """
    prep = config.prep
    files = find_files(prep.inputs, prep.from_python_stdlib, prep.format, True)
    if not has_tokenizer(Path(prep.tokenizer)):
        stages = ["prep"] if prep.dedup == "task" else [COMPARE, CHOOSE, "prep"]
        return {stage: list(range(prep.tasks)) for stage in stages}
    job = TokenizeJob(
        out=Path(config.data.path),
        files=tuple(files),
        tokenizer=load_tokenizer(Path(prep.tokenizer)).info,
        num_tasks=prep.tasks,
        valid_fraction=prep.valid_fraction,
        shard_tokens=prep.shard_tokens,
        text_key=prep.text_key,
        on_bad_document=prep.on_bad_document,
        most_document_bytes=prep.max_document_bytes,
        max_bad=None if prep.max_bad < 0 else prep.max_bad,
        id_key=prep.id_key,
        metadata=tuple(prep.metadata),
        clean=tuple(prep.clean),
        dedup=prep.dedup,
    )
    check_settings(job)
    *first, last = passes_of(job)
    missing = {
        one.name: [task for task in range(prep.tasks) if not one.is_done(job, task)]
        for one in first
    }
    finished = {name: tasks for name, tasks in missing.items() if tasks}
    return {**finished, "prep": [t for t in range(prep.tasks) if not last.is_done(job, t)]}


def prep_problems(config: RunConfig, stages: list[str]) -> list[str]:
    """Everything wrong with the `prep` section, also for the stages that use what it makes."""
    prep = config.prep
    problems = setting_problems(prep, "prep.")
    if config.data.sources:
        return [
            *problems,
            "stage prep makes one dataset, at data.path, and the run has data.sources: make each "
            "of them by `esolm prep tokenize` and `merge`, then submit without this stage",
        ]
    if is_url(config.data.path):
        return [
            *problems,
            f"stage prep writes to a folder, and data.path is {shown(config.data.path)}: leave the "
            "stage out, or prepare in a folder and copy that there",
        ]
    if not prep.inputs and not prep.from_python_stdlib:
        problems.append("prep.inputs names no text; give files, or prep.from_python_stdlib=true")
    if not prep.tokenizer:
        problems.append("prep.tokenizer is missing: a tokenizer's directory, or where to make one")
    if prep.valid_fraction == 0 and (readers := _readers_of_valid(config, stages)):
        problems.append(
            f"prep.valid_fraction is 0, which leaves nothing to validate on for {readers}"
        )
    if prep.vocab_size <= FEWEST_PIECES and not has_tokenizer(Path(prep.tokenizer)):
        problems.append(
            f"prep.vocab_size is {prep.vocab_size}; it must be more than {FEWEST_PIECES}, the "
            "bytes and special symbols of every tokenizer"
        )
    if not problems:
        try:
            _missing_tasks(config)
        except DataError as error:
            problems.append(str(error))
    return problems


def _readers_of_valid(config: RunConfig, stages: list[str]) -> str:
    readers = ["stage evaluate"] if "evaluate" in stages else []
    if "train" in stages and config.train.valid_every_steps > 0:
        readers.append("train.valid_every_steps")
    return " and ".join(readers)


def partition_of(stage: str, profile: ClusterProfile) -> str:
    return profile.partition if stage in GPU_STAGES else profile.cpu_partition


def _words(*values: str | Path) -> str:
    return " ".join(shlex.quote(str(value)) for value in values)
