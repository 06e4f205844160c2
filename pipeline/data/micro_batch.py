"""One micro-batch as an engine takes it."""

from dataclasses import dataclass

from torch import Tensor

from esolm.model.loss import SparseTargets


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one micro-batch and the name of its loss term.

    inputs: (tokens, positions, rows). targets: see `SparseTargets`. bucket: the part of
    the range of t that all its rows lie in, or None if there is no such part. sources: the number
    of the source of each row, or None if losses by source are not asked for. replaced: rows in the
    places of damaged ones; those of a whole batch are counted in its first.
    """

    inputs: tuple[Tensor, Tensor, Tensor]
    targets: SparseTargets
    term: str
    bucket: int | None = None
    sources: tuple[int, ...] | None = None
    replaced: int = 0
