"""The losses of a step, summed over the replicas and told to every stage."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.layout import Layout

Kind = tuple[str, int | None]
"""The term and the bucket of a micro-batch."""


def reduce_losses(
    batches: Sequence[MicroBatch], recorded: Sequence[Tensor], layout: Layout, device: torch.device
) -> tuple[dict[str, float], dict[int, float]]:
    """Returns (loss by term, loss by bucket) over all replicas; collective over all ranks.

    recorded: the loss of each micro-batch on the last stage; empty on the other stages.
    """
    kinds = sorted({(batch.term, batch.bucket) for batch in batches}, key=str)
    if layout.dp > 1:
        gathered: list[list[Kind]] = [[] for _ in range(layout.dp)]
        group = parallel_state.get_data_parallel_group()
        dist.all_gather_object(gathered, kinds, group=group)
        kinds = sorted(set().union(*gathered), key=str)
    # Each row holds the loss of a kind and its number of micro-batches.
    sums = torch.zeros(len(kinds), 2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage():
        for batch, loss in zip(batches, recorded, strict=True):
            row = sums[kinds.index((batch.term, batch.bucket))]
            row += torch.stack([loss.double(), torch.ones_like(loss, dtype=torch.float64)])
        if layout.dp > 1:
            dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    if layout.pp > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(sums, source, group=parallel_state.get_pipeline_model_parallel_group())
    return _by_term_and_bucket(kinds, sums)


def _by_term_and_bucket(
    kinds: list[Kind], sums: Tensor
) -> tuple[dict[str, float], dict[int, float]]:
    """Returns (loss by term, loss by bucket).

    sums: [kinds, 2], the loss of each kind and its number of micro-batches, which have equal size.
    """
    terms = {term: 0.0 for term, _ in kinds}
    counts = dict.fromkeys(terms, 0.0)
    for (term, _), (loss, count) in zip(kinds, sums.tolist(), strict=True):
        terms[term] += loss
        counts[term] += count
    buckets = {
        bucket: loss * counts[term] / count
        for (term, bucket), (loss, count) in zip(kinds, sums.tolist(), strict=True)
        if bucket is not None
    }
    return terms, buckets
