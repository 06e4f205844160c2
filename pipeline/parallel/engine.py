"""One interface over what runs the network, so that nothing above it asks which engine it has.

The contract of an engine: it holds a part of the network, the training states of that part (fp32
weights, both Adam moments, the average) as `Fragment`s, and what the two need to agree over its
ranks. The loop gives it micro-batches; checkpoints, validation and guards ask it for its fragments
and its replicas. `esolm.pipeline.parallel.build` lists the engines and says how one is added.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from esolm.model.config import ModelConfig
from esolm.model.pieces import LOGITS_MB
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.fragments import AVERAGE, WEIGHTS, Fragment
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.parallel.losses import StepLosses


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know of a run."""

    model: ModelConfig
    layout: Layout
    device: torch.device
    seed: int
    micro_batch_size: int
    num_micro_batches: int
    """Micro-batches per step on each data-parallel rank."""
    precision: str
    gradient_clipping: float
    optimizer: dict[str, Any]
    """Arguments of EmaAdamW."""
    layer_costs: Sequence[float]
    """Relative costs of the embedding, every block and the head, by which stages are balanced."""
    recompute: str = "none"
    """What the backward pass computes again instead of keeping it; see `esolm.model.recompute`."""
    fp8: str = "none"
    """The recipe by which the blocks multiply in FP8; see `esolm.model.fp8`."""
    logits_mb: int = LOGITS_MB
    """What logits may take at a time; see `esolm.model.output.Scored`."""
    offload: bool = False
    """Keep the optimizer's states and do its update in host memory."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights that the network computes with."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


@dataclass(frozen=True)
class StepResult:
    """The loss of each term, summed over the global batch, and the gradient's norm.

    The norm is the one before clipping.
    """

    losses: dict[str, float]
    grad_norm: float
    applied: bool = True
    """False if the update was judged harmful and the weights are what they were."""
    buckets: dict[int, float] = field(default_factory=dict)
    """By bucket: what the term's loss would be if all its rows were like those with t in it."""
    sources: dict[int, float] = field(default_factory=dict)
    """By number of a source: what the loss would be if all rows were like those of the source."""

    @property
    def loss(self) -> float:
        return sum(self.losses.values())


Judge = Callable[[StepResult], bool]
"""Says whether a step may change the weights; it is given the same figures on every rank."""


def judged(losses: StepLosses, norm: float, finite: bool, judge: Judge | None) -> StepResult:
    """Returns a step's figures and the verdict on it.

    finite: whether all gradients are; others are never applied, and nobody is asked.
    """
    result = StepResult(losses.terms, norm, finite, losses.buckets, losses.sources)
    if finite and judge is not None:
        result = replace(result, applied=judge(result))
    return result


@dataclass(frozen=True)
class Replica:
    """What this rank holds of a parameter, and over which ranks it must be the same bit by bit."""

    name: str
    held: Tensor
    over_data: bool
    over_tensor: bool


class Engine(ABC):
    """Runs the network of one layout.

    Steps, evaluation, publishing, adopting and averaging are collective over all ranks.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.layout = config.layout

    @staticmethod
    @abstractmethod
    def runs(config: EngineConfig) -> bool:
        """Whether this engine is one for a run."""

    @abstractmethod
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Returns (canonical name, parameter) of all that this rank holds.

        See `esolm.pipeline.parallel.names`.
        """

    @abstractmethod
    def train_step(
        self, batches: Sequence[MicroBatch], learning_rate: float, judge: Judge | None = None
    ) -> StepResult:
        """Takes one optimizer step over this replica's micro-batches of the global batch.

        The judge is asked when all gradients are there and before any weight changes. A gradient
        that is not finite is never applied, with a judge or without.
        """

    @abstractmethod
    def evaluate(self, batches: Sequence[MicroBatch]) -> dict[str, float]:
        """Returns the loss of each term, summed over all replicas; the weights stay as they are."""

    @abstractmethod
    def fragments(self) -> list[Fragment]:
        """Returns this rank's fragments of every parameter: views of its fp32 training states."""

    @abstractmethod
    def publish(self) -> None:
        """Makes the fragments' fp32 weights the ones that the network computes with."""

    @abstractmethod
    def adopt(self, updates: int) -> None:
        """Goes on from freshly filled fragments, as if after `updates` updates of the optimizer."""

    @abstractmethod
    def replicas(self) -> Iterator[Replica]:
        """Yields what several ranks hold alike; all ranks of a group yield it in the same order."""

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Lets the network compute with the average of the weights within the block.

        Afterwards everything is bit by bit what it was.
        """
        self._exchange_weights_and_average()
        try:
            yield
        finally:
            self._exchange_weights_and_average()

    def _exchange_weights_and_average(self) -> None:
        for fragment in self.fragments():
            weights, average = fragment.states[WEIGHTS], fragment.states[AVERAGE]
            held = weights.clone()
            weights.copy_(average)
            average.copy_(held)
        self.publish()
