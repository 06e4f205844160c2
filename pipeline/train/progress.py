"""How far a run has come, and whether a checkpoint is of the same run."""

import logging
from dataclasses import asdict, dataclass

import torch.distributed as dist

from esolm.model.config import ModelConfig
from esolm.pipeline.checkpoint.checkpointer import RunState
from esolm.pipeline.data.mixture import MixtureReader
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.first_rank import from_first_rank
from esolm.pipeline.run.experiment import Experiment
from esolm.pipeline.run.sources import epoch_problems
from esolm.pipeline.train.guards import SpikeGuard

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Counts since the start of the run, over all restarts.

    updates: the steps whose update was applied. consumed_samples: the place in the data where the
    next step begins.
    """

    step: int = 0
    updates: int = 0
    consumed_samples: int = 0
    tokens: int = 0

    def to_state(
        self, experiment: Experiment, reader: MixtureReader, guard: SpikeGuard
    ) -> RunState:
        """Returns what a checkpoint written at this moment says of the run."""
        return RunState(
            **asdict(self),
            seq_len=reader.seq_len,
            model=asdict(experiment.model),
            objective=asdict(experiment.config.objective),
            data=reader.state(self.consumed_samples),
            data_path=experiment.dataset.place,
            tokenizer=experiment.dataset.tokenizer_fingerprint,
            guard=guard.state(),
        )

    @classmethod
    def of(cls, state: RunState) -> "Progress":
        return cls(state.step, state.updates, state.consumed_samples, state.tokens)


def follow(state: RunState, experiment: Experiment, reader: MixtureReader) -> None:
    """Lets the reader of every rank go on from a checkpoint; collective over all ranks.

    Raises what `check_same_run` raises.
    """
    changes = from_first_rank(lambda: check_same_run(state, experiment, reader))
    if state.data:
        reader.adopt(state.data, experiment.config.data.change_sources, state.data_path)
    if dist.get_rank() == 0:
        for change in changes:
            logger.warning("from sample %d on: %s", state.consumed_samples, change)


def check_same_run(state: RunState, experiment: Experiment, reader: MixtureReader) -> list[str]:
    """Lets the reader go on from a checkpoint; returns how its sources have changed, in words.

    Raises ConfigError or DataError with every way in which the checkpoint is of another run.
    """
    dataset, here = experiment.dataset, asdict(experiment.model)
    there = asdict(ModelConfig(**state.model))  # what an older checkpoint lacks gets its default
    problems = [
        f"model.{name} is {there[name]} in the checkpoint, {value} here"
        for name, value in here.items()
        if there[name] != value and name not in ("dropout", "z_loss")
    ]
    # An imported checkpoint was trained on data of its own: it names no tokenizer and no samples.
    if state.tokenizer and state.tokenizer != dataset.tokenizer_fingerprint:
        problems.append(
            f"the checkpoint's vocabulary ({state.model.get('vocab_size')} ids, tokenizer "
            f"{state.tokenizer[:12]}) is not that of {dataset.name} ({here['vocab_size']} ids, "
            f"tokenizer {dataset.tokenizer_fingerprint[:12]})"
        )
    if problems:
        advice = "run.dir holds a checkpoint of another network; use another directory"
        raise ConfigError([*problems, advice])
    if not state.data:
        return []
    train = experiment.config.train
    may_change = experiment.config.data.change_sources
    changes = reader.adopt(state.data, may_change, state.data_path)
    to_come = max(0, train.steps - state.step) * train.global_batch_size
    if problems := epoch_problems(reader, state.consumed_samples + to_come):
        raise ConfigError(problems)
    return changes
