"""Sequence parallelism: between the split layers each rank of a group holds part of the tokens.

Norms, residuals and dropout then work on T / tp tokens per rank, and the all-reduce after each
split layer becomes a reduce-scatter there and an all-gather before the next (Korthikanti et al.,
arXiv 2205.05198). Without it tokens are not split, and only what is made for split products does
something: it all-reduces.
"""

from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn
from torch import distributed as dist

from esolm.model.sharding import has_partial_gradient, is_sharded


class TokenSplit:
    """Moves hidden states between "all tokens" [T, D] and "this rank's tokens" [T / tp, D]."""

    def __init__(self, parallel: ModelParallelConfig) -> None:
        self.enabled = parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1

    def scatter(self, hidden_TD: Tensor) -> Tensor:
        """Returns this rank's tokens out of hidden states that every rank has."""
        if not self.enabled:
            return hidden_TD
        part: Tensor = scatter_to_sequence_parallel_region(hidden_TD)
        return part

    def gather(self, hidden_TD: Tensor) -> Tensor:
        """Returns all tokens, for work whose gradient is the same on every rank."""
        if not self.enabled:
            return hidden_TD
        whole: Tensor = gather_from_sequence_parallel_region(
            hidden_TD, tensor_parallel_output_grad=False
        )
        return whole

    def gather_for_split_layer(self, hidden_TD: Tensor) -> Tensor:
        """Returns all tokens, for a split layer that leaves each rank a share of the gradient.

        Without sequence parallelism such a layer sums the shares itself.
        """
        if not self.enabled:
            return hidden_TD
        whole: Tensor = gather_from_sequence_parallel_region(hidden_TD)
        return whole

    def gather_for_split_product(self, hidden_TD: Tensor) -> Tensor:
        """Returns all tokens, for a product that gives each rank a share of the gradient."""
        if self.enabled:
            return self.gather_for_split_layer(hidden_TD)
        copied: Tensor = copy_to_tensor_model_parallel_region(hidden_TD)
        return copied

    def sum_of_products(self, partial_TD: Tensor) -> Tensor:
        """Returns the sum over the ranks, where tokens are split of this rank's alone."""
        # Of another layout megatron-core would sum a copy, and return what it was given.
        partial_TD = partial_TD.contiguous()
        total: Tensor = (
            reduce_scatter_to_sequence_parallel_region(partial_TD)
            if self.enabled
            else reduce_from_tensor_model_parallel_region(partial_TD)
        )
        return total

    def first_token(self, num_local: int) -> int:
        """Returns the place of this rank's first token among all tokens."""
        return parallel_state.get_tensor_model_parallel_rank() * num_local if self.enabled else 0


def sum_partial_gradients(module: nn.Module, parallel: ModelParallelConfig) -> None:
    """Has partial gradients of parameters that are not split summed over the tensor-parallel ranks.

    The heads of one rank give only part of the gradient of what all heads share; under sequence
    parallelism the tokens of one rank give only part of that of norms, row biases and modulations.
    """
    if parallel.tensor_model_parallel_size == 1:
        return
    tokens_are_split = TokenSplit(parallel).enabled
    group = parallel_state.get_tensor_model_parallel_group()

    def total(gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed, group=group)
        return summed

    for parameter in module.parameters():
        by_tokens = tokens_are_split and not is_sharded(parameter)
        if by_tokens or has_partial_gradient(parameter):
            parameter.register_hook(total)  # type: ignore[no-untyped-call]
