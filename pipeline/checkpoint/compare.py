"""Compares two checkpoints, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.parallel.fragments import STATES


@dataclass(frozen=True)
class StateDifference:
    """How one state of two checkpoints differs.

    largest: (name, max |a - b|) of the unequal tensors, the largest first. only_a, only_b: the
    names that only one of the two has. shapes: (name, shape in a, shape in b) of those with unequal
    shapes.
    """

    state: str
    num_tensors: int
    only_a: list[str]
    only_b: list[str]
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    largest: list[tuple[str, float]]

    @property
    def equal(self) -> bool:
        return not (self.only_a or self.only_b or self.shapes or self.largest)

    def summary(self) -> str:
        unequal = self.num_tensors if self.equal else len(self.largest)
        return f"{self.state}: {unequal} tensors {'equal' if self.equal else 'with other values'}"

    def lines(self, limit: int) -> list[str]:
        """Returns one line for each finding.

        limit: how many tensors with other values are shown at most; 0 shows all of them.
        """
        shown = self.largest[: limit or None]
        left_out = len(self.largest) - len(shown)
        found = [
            *(f"only in the first: {name}" for name in self.only_a),
            *(f"only in the second: {name}" for name in self.only_b),
            *(f"shape {list(a)} and {list(b)}: {name}" for name, a, b in self.shapes),
            *(f"{value:.3e}  {name}" for name, value in shown),
        ]
        return [*found, f"... and {left_out} more"] if left_out else found


def compare(a: CheckpointReader, b: CheckpointReader) -> Iterator[StateDifference]:
    """Compares one state after another; the full tensors of one state of both are in memory."""
    for state in STATES:
        yield compare_tensors(state, a.tensors(state), b.tensors(state))


def compare_tensors(state: str, a: dict[str, Tensor], b: dict[str, Tensor]) -> StateDifference:
    shared = sorted(a.keys() & b.keys())
    unlike = [name for name in shared if a[name].shape != b[name].shape]
    unequal = [name for name in shared if name not in unlike and not _same_bits(a[name], b[name])]
    largest = [(name, _largest(a[name], b[name])) for name in unequal]
    return StateDifference(
        state=state,
        num_tensors=len(a),
        only_a=sorted(a.keys() - b.keys()),
        only_b=sorted(b.keys() - a.keys()),
        shapes=[(name, tuple(a[name].shape), tuple(b[name].shape)) for name in unlike],
        largest=sorted(largest, key=lambda found: found[1], reverse=True),
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree bit by bit, also where their values are not numbers."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def _largest(a: Tensor, b: Tensor) -> float:
    """Returns max |a - b|, which is infinite where one of the two is not a number."""
    difference = (a.double() - b.double()).abs()
    return float(difference.nan_to_num(nan=torch.inf).max())
