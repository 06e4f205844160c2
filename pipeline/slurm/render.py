"""From templates under slurm/ to sbatch scripts that a person can read."""

import shlex
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from esolm.data_prep.cleaning.stages import inputs_of
from esolm.data_prep.remote import is_url
from esolm.data_prep.sources import folders_of
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.run.sources import source_folders
from esolm.pipeline.slurm.profile import ClusterProfile
from esolm.pipeline.slurm.stages import GPU_STAGES, PURPOSES, Job, Paths, partition_of

TEMPLATES = Path(__file__).parents[2] / "slurm"


def render(
    job: Job,
    config: RunConfig,
    profile: ClusterProfile,
    paths: Paths,
    usable_nodes: list[int],
    revision: str,
) -> str:
    """The sbatch script of a job. usable_nodes: most first, those that training can run on."""
    template = _environment().get_template(f"{job.stage}.sbatch.j2")
    return template.render(
        job=_job_values(job, config, profile, paths),
        config=config,
        profile=profile,
        run_dir=paths.run,
        code=paths.code,
        revision=revision,
        python=profile.python or sys.executable,
        mounts=_mounts(config, profile, job.stage),
        usable_nodes=usable_nodes,
        gpus=lambda count: f"{profile.gpu_type}:{count}" if profile.gpu_type else str(count),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    # Quotes even what needs none: shellcheck takes a bare comma in an array for a slip.
    environment.filters["quoted"] = lambda value: "'" + str(value).replace("'", "'\"'\"'") + "'"
    return environment


def _job_values(
    job: Job, config: RunConfig, profile: ClusterProfile, paths: Paths
) -> dict[str, Any]:
    """What differs between jobs; `log`, `events` and `id` are shell words of the script."""
    logs, name = paths.slurm / "logs", job.stage
    array = bool(job.array)
    task = "-${SLURM_ARRAY_TASK_ID}" if array else ""
    number = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "${SLURM_JOB_ID}"
    values: dict[str, Any] = {
        "name": f"{paths.run.name}-{name}",
        "purpose": job.purpose,
        "command": job.command,
        "partition": partition_of(job.stage, profile),
        "array": _array(job.array, profile.cpu.concurrent_tasks),
        "output": logs / f"{name}-{'%A_%a' if array else '%j'}.log",
        "log": f'"$run_dir/slurm/logs/{name}-{number}.log"',
        "events": f'"$run_dir/slurm/events/{name}{task}.tsv"',
        "id": f'"{number}"',
    }
    own = {"train": config.slurm.time or profile.time, "serve": config.serve.time or profile.time}
    values["time"] = own.get(name, profile.cpu.time)
    section: Any = profile if job.stage in GPU_STAGES else profile.cpu
    values["cpus_per_task"], values["memory"] = section.cpus_per_task, section.memory
    if name == "serve":
        values["cpus_per_task"] *= config.serve.replicas
    return values


def _array(tasks: tuple[int, ...], concurrent: int) -> str:
    """Tasks as Slurm writes them, runs of numbers joined, at most `concurrent` at a time."""
    runs: list[list[int]] = []
    for task in tasks:
        if runs and task == runs[-1][1] + 1:
            runs[-1][1] = task
        else:
            runs.append([task, task])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return f"{','.join(words)}%{concurrent}"


def mounted_folders(config: RunConfig, profile: ClusterProfile, stage: str) -> list[str]:
    """What the container of a stage must see, each FROM or FROM:TO; none without containers."""
    if profile.container.runtime == "none":
        return []
    folders = [*profile.container.mounts, config.run.dir, *source_folders(config.data)]
    if stage == "tokenizer" or stage in PURPOSES:
        files = [path for words in config.prep.clean for path in inputs_of(words)]
        folders += [*folders_of([*config.prep.inputs, *files]), config.prep.tokenizer]
    if stage == "train" and not is_url(config.train.init_from):
        # Of a checkpoint the whole run: its tokenizer lies beside the checkpoints.
        origin = Path(config.train.init_from)
        folders.append(str(origin.parents[1] if origin.parent.name == "checkpoints" else origin))
    return [folder for folder in dict.fromkeys(folders) if folder not in ("", ".")]


def _mounts(config: RunConfig, profile: ClusterProfile, stage: str) -> list[str]:
    """FROM:TO of all that a container must see."""
    folders = mounted_folders(config, profile, stage)
    return [folder if ":" in folder else f"{folder}:{folder}" for folder in folders]
