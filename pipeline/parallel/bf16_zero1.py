"""DeepSpeed's optimizer of bf16 and ZeRO-1, with gradients that are reduce-scattered.

BF16_Optimizer accumulates whole fp32 gradients on every rank and all-reduces all of them after the
last backward pass, though a rank updates its part alone. Everything else of it stays. To be
imported after `import_deepspeed`.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import clip_tensors_by_global_norm
from torch import Tensor, nn

from esolm.pipeline.parallel.gradient_scatter import Bucket, GradientScatter
from esolm.pipeline.parallel.zero import speaks_for


class ScatteringOptimizer(BF16_Optimizer):  # type: ignore[misc]
    """BF16_Optimizer, of whose gradients each rank gets the sums that it needs."""

    _scatter: GradientScatter
    _in_norm: list[Tensor]

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns what DeepSpeed's engines are to all-reduce: nothing."""
        return [], {}

    def accumulate_hp_grads_and_remove_lp(
        self, lp_param: Any, group_idx: int, param_idx: int
    ) -> None:
        super().accumulate_hp_grads_and_remove_lp(lp_param, group_idx, param_idx)
        self._scatter.arrived(group_idx, param_idx)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates this rank's part of the weights and gathers the others', if the norm is finite.

        The engine clears the gradients.
        """
        self._scatter.finish()
        norm = self._norm()
        self.overflow = not math.isfinite(norm)
        self._global_grad_norm = math.inf if self.overflow else norm
        if self.overflow:
            return
        parts = self.fp32_groups_gradient_flat_partition
        if self.clip_grad > 0:
            clip_tensors_by_global_norm(parts, self.clip_grad, norm)
        for weights, gradients in zip(self.fp32_groups_flat_partition, parts, strict=True):
            weights.grad = gradients
        self.optimizer.step()
        self._lazy_init_hp_params_optimizer_state()
        self.update_lp_params()

    def _norm(self) -> float:
        """Returns the norm of all gradients, the same on every rank, and nan or inf if one is."""
        squared = torch.stack(torch._foreach_norm(self._in_norm)).square().sum()
        dist.all_reduce(squared)
        return math.sqrt(float(squared))


def scatter_gradients(wrapper: Any, micro_batches: int, late: Collection[nn.Parameter]) -> None:
    """Has a new BF16_Optimizer scatter the gradients of each step's micro-batches.

    late: the parameters that may get several gradients from a micro-batch, or another sum later.
    """
    assert type(wrapper) is BF16_Optimizer, type(wrapper)
    # DeepSpeed's engine makes it itself, and its hooks hold this very object.
    wrapper.__class__ = ScatteringOptimizer
    some = {id(parameter) for parameter in late}
    buckets = [
        Bucket(flat, len(group), [i for i, p in enumerate(group) if id(p) in some], replicas)
        for flat, group, replicas in zip(
            wrapper.fp32_groups_gradients_flat,
            wrapper.bf16_groups,
            wrapper.real_dp_process_group,
            strict=True,
        )
    ]
    wrapper._scatter = GradientScatter(buckets, micro_batches)
    # A rank may have nothing that counts.
    wrapper._in_norm = [buckets[0].flat.new_zeros(1)]
    for bucket, group in zip(buckets, wrapper.bf16_groups, strict=True):
        wrapper._in_norm += _counted(bucket, group)


def _counted(bucket: Bucket, parameters: Collection[nn.Parameter]) -> list[Tensor]:
    """Returns the pieces of this rank's part that it alone counts in the norm."""
    size, counted = bucket.own_P.numel(), []
    start = -size * bucket.replicas.rank()
    for parameter in parameters:
        stop = start + parameter.numel()
        if speaks_for(parameter) and max(start, 0) < min(stop, size):
            counted.append(bucket.own_P[max(start, 0) : min(stop, size)])
        start = stop
    return counted
