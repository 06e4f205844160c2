"""One micro-batch as an engine takes it."""

from dataclasses import dataclass

from torch import Tensor

from model.loss import SparseTargets


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one micro-batch and the name of its loss term.

    inputs: (tokens, positions, rows). targets: see `model.loss.SparseTargets`. bucket: the part of
    the range of t that all its rows lie in, None if there is no such.
    """

    inputs: tuple[Tensor, Tensor, Tensor]
    targets: SparseTargets
    term: str
    bucket: int | None = None
