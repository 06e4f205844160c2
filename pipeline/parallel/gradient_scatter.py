"""Sums gradients over replicas by reduce-scatters, beside the last backward pass of a step.

A replica that updates one part of the weights needs that part of the sum alone: half the bytes of
an all-reduce.
"""

from collections.abc import Collection, Sequence

import torch.distributed as dist
from torch import Tensor


class Bucket:
    """The gradients of some parameters, whose sums one collective brings to their replicas.

    flat: [d * P] for d replicas, the parameters' gradients one after the other and padding; replica
    i updates the i-th P elements. late: which parameters need not be complete when each micro-batch
    has given them a gradient.
    """

    def __init__(
        self, flat: Tensor, parameters: int, late: Collection[int], replicas: dist.ProcessGroup
    ) -> None:
        self.flat, self.replicas = flat, replicas
        self.own_P = flat.view(replicas.size(), -1)[replicas.rank()]
        """What this replica updates; after `GradientScatter.finish` the mean over all."""
        self.late = bool(late)
        self._parameters = parameters
        self.expect(0)

    def expect(self, micro_batches: int) -> None:
        """Waits for so many gradients of each parameter from now on."""
        self._left = [micro_batches] * self._parameters
        self._incomplete = self._parameters

    def arrived(self, index: int) -> None:
        """Notes a gradient of a parameter."""
        self._left[index] -= 1
        assert self._left[index] >= 0, "a parameter got two gradients from a micro-batch"
        self._incomplete -= not self._left[index]

    @property
    def complete(self) -> bool:
        return self._incomplete == 0


class GradientScatter:
    """Leaves in each replica's part of the gradients their mean over the replicas.

    buckets: in the order of the forward pass. They are sent in the other, the same on every rank,
    each when it is complete; those that are late at the end.
    """

    def __init__(self, buckets: Sequence[Bucket], micro_batches: int) -> None:
        self.buckets = buckets
        self._micro_batches = micro_batches
        shared = [bucket for bucket in reversed(buckets) if bucket.replicas.size() > 1]
        self._in_order = sorted(shared, key=lambda bucket: bucket.late)
        self._sent: list[dist.Work] = []
        self._start_again()

    def _start_again(self) -> None:
        self._sent.clear()
        for bucket in self.buckets:
            bucket.expect(self._micro_batches)

    def arrived(self, bucket: int, index: int) -> None:
        """Notes that a gradient of a bucket's parameter has been added to what was there."""
        if self.buckets[bucket].late:
            return
        self.buckets[bucket].arrived(index)
        for following in self._in_order[len(self._sent) :]:
            if following.late or not following.complete:
                break
            self._send(following)

    def finish(self) -> None:
        """Sends what is left and waits for all; to be called before the gradients are used."""
        for following in self._in_order[len(self._sent) :]:
            self._send(following)
        for work, bucket in zip(self._sent, self._in_order, strict=True):
            work.wait()
            bucket.own_P.mul_(1.0 / bucket.replicas.size())
        self._start_again()

    def _send(self, bucket: Bucket) -> None:
        # In place: what is not this replica's own is of no use afterwards.
        work = dist.reduce_scatter_tensor(
            bucket.own_P, bucket.flat, group=bucket.replicas, async_op=True
        )
        assert work is not None
        self._sent.append(work)
