"""Several linear layers of the same inputs, split over the tensor-parallel ranks by their outputs.

megatron-core's layers gather their inputs, and sum the gradients of these, each for itself. These
do it once for all of them. As there, what sequence parallelism gathers is not kept for the backward
pass but gathered again.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor
from torch.autograd.function import once_differentiable

from esolm.model.sequence_parallel import TokenSplit


def split_linears(
    hidden_TD: Tensor, weights: Sequence[Tensor], parallel: ModelParallelConfig
) -> tuple[Tensor, ...]:
    """Returns `hidden @ weight.T` of all tokens for each weight, the rows of this rank.

    hidden_TD: under sequence parallelism this rank's tokens, else all of them.
    """
    outputs: tuple[Tensor, ...] = _SplitLinears.apply(  # type: ignore[no-untyped-call]
        hidden_TD, TokenSplit(parallel), *weights
    )
    return outputs


class _SplitLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, split: TokenSplit, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.split = split
        ctx.save_for_backward(hidden_TD, *weights)
        whole_TD = split.gather(hidden_TD)
        return tuple(F.linear(whole_TD, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, *weights = ctx.saved_tensors
        total_TD = gradients[0] @ weights[0]
        for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
            total_TD = torch.addmm(total_TD, gradient, weight)
        group = parallel_state.get_tensor_model_parallel_group()
        if ctx.split.enabled:
            of_inputs = torch.empty_like(hidden_TD)
            summed = dist.reduce_scatter_tensor(of_inputs, total_TD, group=group, async_op=True)
        else:
            of_inputs = total_TD
            summed = dist.all_reduce(of_inputs, group=group, async_op=True)
        whole_TD = ctx.split.gather(hidden_TD)
        of_weights = [gradient.T @ whole_TD for gradient in gradients]
        summed.wait()
        return of_inputs, None, *of_weights
