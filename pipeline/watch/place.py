"""Where in the data a step of a run was, from what the run wrote down."""

from dataclasses import dataclass
from pathlib import Path

from esolm.pipeline.checkpoint import commit
from esolm.pipeline.checkpoint.listing import list_checkpoints
from esolm.pipeline.errors import CheckpointError, ConfigError
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History, Rollback, Start, read_lines
from esolm.pipeline.run.sections import RunConfig


@dataclass(frozen=True)
class StepRows:
    """The rows of a step: the samples first_sample, first_sample + 1, ... of one global batch.

    known_by: the record that says so.
    """

    first_sample: int
    global_batch_size: int
    known_by: str


def find_step(directory: RunDirectory, config: RunConfig, step: int) -> StepRows:
    """Finds the rows of a step from the records of its run.

    The incident of that step gives them, else the last start or rollback before it, else the newest
    checkpoint before it: from there on, every step took one global batch. Raises ConfigError for a
    step below 1, and CheckpointError if no record gives them.
    """
    if step < 1:
        raise ConfigError(f"steps are counted from 1, {step} is none")
    incidents = [line for line in read_lines(directory.incidents) if line.get("step") == step]
    if incidents:
        entry = incidents[-1]
        return StepRows(entry["first_sample"], entry["global_batch_size"], "incidents.jsonl")
    history = History(directory)
    origins: list[Start | Rollback] = [*history.starts(), *history.rollbacks()]
    for origin in sorted(origins, key=lambda origin: origin.time, reverse=True):
        if origin.step < step:
            size = origin.global_batch_size
            known_by = f"the {type(origin).__name__.lower()} at step {origin.step}"
            return StepRows(
                origin.consumed_samples + (step - 1 - origin.step) * size, size, known_by
            )
    checkpoint = checkpoint_before(directory, step)
    size = config.train.global_batch_size
    consumed = commit.read_manifest(checkpoint).run["consumed_samples"]
    first_sample = consumed + (step - 1 - commit.step_of(checkpoint)) * size
    return StepRows(first_sample, size, f"checkpoint {checkpoint.name}")


def checkpoint_before(directory: RunDirectory, step: int) -> Path:
    """Returns the newest valid checkpoint of an earlier step, or raises CheckpointError."""
    found = [c for c in list_checkpoints(directory.checkpoints) if c.valid and c.step < step]
    if not found:
        raise CheckpointError(f"{directory.path} has no valid checkpoint before step {step}")
    return directory.checkpoints / found[-1].name
