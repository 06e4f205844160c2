"""Sums gradients over replicas by reduce-scatters, beside the last backward pass of a step.

A replica that updates one part of the weights needs that part of the sum alone: half the bytes of
an all-reduce. Letters: d replicas, P elements of a part.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor

IN_FLIGHT = 2
"""How many buckets may be on their way, each of which is a copy of gradients."""


@dataclass(frozen=True)
class FlatGradients:
    """The gradients of some parameters, one after the other and padded.

    flat: [d * P]; replica i updates part i. sizes: the elements of each parameter. late: which
    parameters need not be complete when each micro-batch has given them a gradient.
    """

    flat: Tensor
    sizes: Sequence[int]
    late: frozenset[int]
    replicas: dist.ProcessGroup

    @property
    def parts_dP(self) -> Tensor:
        return self.flat.view(self.replicas.size(), -1)

    @property
    def own_P(self) -> Tensor:
        """The part that this replica updates; after `GradientScatter.finish` the mean over all."""
        return self.parts_dP[self.replicas.rank()]


@dataclass
class _Slice:
    """The same elements of all parts, whose sums one collective brings to their replicas."""

    group: FlatGradients
    start: int
    stop: int
    parameters: set[tuple[int, int]] = field(default_factory=set)
    missing: int = 0
    late: bool = False


class GradientScatter:
    """Leaves in each replica's part of the gradients their mean over the replicas.

    A slice is sent when all its gradients have come from all micro-batches, in an order that is
    the same on every rank; what is still there at the end is sent then.
    """

    def __init__(self, groups: Sequence[FlatGradients], micro_batches: int, bucket: int) -> None:
        """bucket: the elements of one collective."""
        self._groups = [group for group in groups if group.replicas.size() > 1]
        self._micro_batches = micro_batches
        self._slices: list[_Slice] = []
        self._on_time: dict[tuple[int, int], list[_Slice]] = {}
        for number, group in enumerate(groups):
            if group.replicas.size() > 1:
                self._cut(number, group, bucket)
        self._slices.sort(key=lambda piece: piece.late)
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()
        self._start_again()

    def _cut(self, number: int, group: FlatGradients, bucket: int) -> None:
        """Cuts a group into slices, those first that a backward pass completes first."""
        part = group.parts_dP.shape[1]
        width = max(1, bucket // group.replicas.size())
        slices = [_Slice(group, at, min(at + width, part)) for at in range(0, part, width)]
        offset = 0
        for index, size in enumerate(group.sizes):
            key = (number, index)
            for held in _parts_of(offset, offset + size, part):
                for piece in slices[held.start // width : (held.stop - 1) // width + 1]:
                    piece.parameters.add(key)
                    piece.late |= index in group.late
            if index not in group.late:
                self._on_time[key] = [piece for piece in slices if key in piece.parameters]
            offset += size
        self._slices += reversed(slices)

    def _start_again(self) -> None:
        self._next = 0
        self._expected = dict.fromkeys(self._on_time, self._micro_batches)
        for piece in self._slices:
            piece.missing = len(piece.parameters)

    def arrived(self, group: int, index: int) -> None:
        """Notes that a gradient of a parameter has been added, of each micro-batch once at most."""
        key = (group, index)
        if key not in self._expected:
            return
        self._expected[key] -= 1
        assert self._expected[key] >= 0, "a gradient came after its sum was sent"
        if self._expected[key]:
            return
        for piece in self._on_time[key]:
            piece.missing -= 1
        while self._next < len(self._slices):
            piece = self._slices[self._next]
            if piece.missing or piece.late:
                break
            self._send(piece)

    def finish(self) -> None:
        """Sends what is left and waits for all; call it before the gradients are used."""
        while self._next < len(self._slices):
            self._send(self._slices[self._next])
        while self._sent:
            self._sent.popleft()[0].wait()
        for group in self._groups:
            group.own_P.mul_(1.0 / group.replicas.size())
        self._start_again()

    def _send(self, piece: _Slice) -> None:
        self._next += 1
        if len(self._sent) == IN_FLIGHT:
            self._sent.popleft()[0].wait()
        group, bounds = piece.group, slice(piece.start, piece.stop)
        copied = group.parts_dP[:, bounds].reshape(-1).clone()
        work = dist.reduce_scatter_tensor(
            group.own_P[bounds], copied, group=group.replicas, async_op=True
        )
        assert work is not None
        self._sent.append((work, copied))


def _parts_of(start: int, stop: int, part: int) -> list[range]:
    """Where in each part, counted from its begin, the flat elements from start to stop lie."""
    numbers = range(start // part, -(-stop // part))
    bounds = ((max(start - n * part, 0), min(stop - n * part, part)) for n in numbers)
    return [range(*each) for each in bounds]
