"""The losses of a step: noted as they come, summed over the replicas and told to every stage."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.copies import copies_group
from esolm.pipeline.parallel.layout import Layout


class Kind(NamedTuple):
    """What is summed up: micro-batches of a term and bucket, or rows of a term and source."""

    term: str
    bucket: int | None = None
    source: int | None = None


@dataclass(frozen=True)
class StepLosses:
    """Losses over all replicas.

    terms: of each term, summed over the global batch. buckets: what the term's loss would be if all
    its rows were like those with t in the bucket. sources: what the whole loss would be if all rows
    were like those of the source; a source without a row in every term has none.
    """

    terms: dict[str, float]
    buckets: dict[int, float]
    sources: dict[int, float]


class LossRecord:
    """What a rank notes of the losses of a step or a validation, until they are summed up."""

    def __init__(self, layout: Layout, device: torch.device, micro_batch_size: int) -> None:
        self._layout, self._device, self._rows = layout, device, micro_batch_size
        self._by_batch: list[Tensor] = []
        self._by_row: list[Tensor] = []
        self._with_sources = False

    def begin(self, batches: Sequence[MicroBatch]) -> None:
        """Sees whether losses by source will be asked for of the micro-batches to come."""
        self._with_sources = batches[0].sources is not None

    def new_rows(self) -> Tensor | None:
        """Returns where the losses of the next micro-batch's rows go, if they are asked for."""
        if not self._with_sources:
            return None
        self._by_row.append(torch.zeros(self._rows, device=self._device))
        return self._by_row[-1]

    def add(self, loss: Tensor) -> None:
        """Notes the loss of a micro-batch."""
        self._by_batch.append(loss.detach())

    def reduce(self, batches: Sequence[MicroBatch]) -> StepLosses:
        """Returns the losses of these micro-batches over all replicas and forgets them.

        Collective over all ranks. batches: in the order in which they were run.
        """
        reduced = _reduced(batches, self._by_batch, self._layout, self._device, self._by_row)
        self._by_batch.clear()
        self._by_row.clear()
        return reduced


def _reduced(
    batches: Sequence[MicroBatch],
    recorded: Sequence[Tensor],
    layout: Layout,
    device: torch.device,
    by_row: Sequence[Tensor],
) -> StepLosses:
    """Returns the losses over all replicas; collective over all ranks.

    recorded: the loss of each micro-batch on the last stage, of this rank's tokens of it; empty on
    the other stages. by_row: if the micro-batches name their rows' sources, there also the losses
    of each one's rows, float32 [B]. Each context-parallel rank counts a micro-batch, but only
    ratios of counts are used.
    """
    kinds = sorted({kind for batch in batches for kind in _kinds_of(batch)}, key=str)
    if layout.copies > 1:
        gathered: list[list[Kind]] = [[] for _ in range(layout.copies)]
        dist.all_gather_object(gathered, kinds, group=copies_group())
        kinds = sorted(set().union(*gathered), key=str)
    # Each row holds the loss of a kind and its number of micro-batches, or of rows.
    sums = torch.zeros(len(kinds), 2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage():
        pairs = zip(recorded, by_row, strict=True) if by_row else ((loss,) for loss in recorded)
        values = torch.cat([part.view(-1) for parts in pairs for part in parts]).double()
        of_batches = [_kinds_of(batch) if by_row else _kinds_of(batch)[:1] for batch in batches]
        numbers = [kinds.index(kind) for each in of_batches for kind in each]
        of_kind = torch.arange(len(kinds))[:, None] == torch.tensor(numbers)
        mine = of_kind.to(device)
        # Not a product: a loss that is not finite must not spoil the sums of others.
        sums[:, 0] = torch.where(mine, values, 0.0).sum(dim=1)
        sums[:, 1] = mine.sum(dim=1)
        if layout.copies > 1:
            dist.all_reduce(sums, group=copies_group())
    if layout.pp > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(sums, source, group=parallel_state.get_pipeline_model_parallel_group())
    return _step_losses(dict(zip(kinds, sums.tolist(), strict=True)))


def _kinds_of(batch: MicroBatch) -> list[Kind]:
    """Returns the kind of a micro-batch, and that of each of its rows if it names their sources."""
    rows = [Kind(batch.term, source=source) for source in batch.sources or ()]
    return [Kind(batch.term, batch.bucket), *rows]


def _step_losses(sums: dict[Kind, list[float]]) -> StepLosses:
    """sums: the loss of each kind and how many it is of, which have equal size."""
    terms: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    num_rows: dict[str, float] = defaultdict(float)
    for kind, (loss, count) in sums.items():
        if kind.source is None:
            terms[kind.term] += loss
            counts[kind.term] += count
        else:
            num_rows[kind.term] += count
    buckets = {
        kind.bucket: loss * counts[kind.term] / count
        for kind, (loss, count) in sums.items()
        if kind.bucket is not None
    }
    parts: dict[int, list[float]] = defaultdict(list)
    for kind, (loss, count) in sums.items():
        if kind.source is not None:
            parts[kind.source].append(loss * num_rows[kind.term] / count)
    whole = {source: sum(each) for source, each in parts.items() if len(each) == len(terms)}
    return StepLosses(dict(terms), buckets, whole)
