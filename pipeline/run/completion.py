"""Whether a run has anything left to do, and what has changed since it last started."""

from esolm.pipeline.checkpoint.commit import committed, damaged, step_of
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.config import stated_settings, valid_keys
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.environment import stated_value
from esolm.pipeline.run.sections import RunConfig

# How a run is cut up, kept, watched and fed, not what it computes.
WITHOUT_EFFECT = (
    *("parallel.", "checkpoint.", "data.prefetch", "data.verify", "data.cache_"),
    *("data.epochs_max", "data.change_sources", "train.logits_mb"),
    *("train.log_every_steps", "train.valid_", "train.timeout_minutes", "train.profile_steps"),
    "train.check_replicas_every_steps",
)
# Where a run is and what jobs ask for: nothing of the training itself.
NOT_COMPARED = ("run.", "prep.", "slurm.")


def is_complete(directory: RunDirectory, config: RunConfig) -> bool:
    """Whether the run has done all steps asked for; a larger number of steps continues it.

    Raises ConfigError if it has done more than the steps asked for, or if DONE and the checkpoints
    tell of different runs: nothing must be trained twice or called complete by mistake.
    """
    done, steps = directory.finished_step(), config.train.steps
    newest = max(map(step_of, committed(directory.checkpoints)), default=None)
    if done is not None and newest is None and config.checkpoint.mirror:
        return done >= steps  # its checkpoints lie elsewhere
    if newest is None and damaged(directory.checkpoints):
        return False  # what the training says of them at its start counts more
    # A run that was continued beyond its DONE has newer checkpoints than that, until it is done.
    if done is not None and (newest is None or newest < done):
        at = "no checkpoint is there" if newest is None else f"the newest checkpoint has {newest}"
        raise ConfigError(
            f"{directory.done} says that the run is complete at step {done}, but {at}: it is of "
            "another run, or checkpoints were removed. Remove DONE to train on from what is there, "
            "or use another run.dir"
        )
    if newest is not None and newest > steps:
        raise ConfigError(
            f"train.steps is {steps}, but the run in {directory.path} has done {newest} steps "
            f"already. Give more steps than {newest} to train on, or use another run.dir"
        )
    return done is not None and done >= steps


def complete_message(directory: RunDirectory) -> str:
    """Returns what is said instead of training a run that is complete."""
    return (
        f"{directory.path} is complete: all {directory.finished_step()} steps are done. A larger "
        "train.steps continues it; esolm status shows how it went"
    )


def changed_settings(directory: RunDirectory, config: RunConfig) -> tuple[list[str], list[str]]:
    """Says how the settings differ from those of the last start: (with effect, without effect).

    A setting has an effect if it changes what the coming steps compute. Both lists are empty at a
    first start. A setting that the run's config.yaml does not state, as in that of an import, has
    not changed. Raises ConfigError if that file is damaged.
    """
    settings = directory.path / "config.yaml"
    if not settings.is_file():
        return [], []
    before = stated_settings(settings)
    with_effect, without = list[str](), list[str]()
    for key in valid_keys():
        now = stated_value(config, key)
        was = before.get(key, now)
        if was != now and not key.startswith(NOT_COMPARED):
            listed = without if key.startswith(WITHOUT_EFFECT) else with_effect
            listed.append(f"{key}: {was} before, {now} now")
    return with_effect, without
