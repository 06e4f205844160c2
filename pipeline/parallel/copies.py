"""The ranks that hold copies of the same weights: all replicas, and in each all parts of its rows.

What DeepSpeed calls data-parallel is this group: each of its ranks has tokens of its own, over
which gradients and losses are summed, and ZeRO shares the training states out among them.
megatron-core's data-parallel group is that of the replicas alone, which read different rows.
"""

from megatron.core import parallel_state
from torch.distributed import ProcessGroup


def copies_group() -> ProcessGroup:
    """Returns the group of this rank, context-parallel ranks fastest."""
    group: ProcessGroup = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return group


def copies_rank() -> int:
    """Returns the number of this rank within the group."""
    return copies_group().rank()
