"""What reading the data came to since the last logged step, over all ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.data.mixture import MixtureReader


class DataFigures:
    """Counts rows that were replaced, and what was fetched, if a run may have any of them."""

    def __init__(self, reader: MixtureReader, device: torch.device) -> None:
        self._remotes = [each.dataset.remote for each in reader.sources if each.dataset.remote]
        self._quarantines = reader.quarantine is not None
        self._device = device
        # All ranks of a replica read the same rows, so one of them counts.
        self._counts_rows = (
            parallel_state.get_tensor_model_parallel_rank() == 0
            and parallel_state.get_context_parallel_rank() == 0
            and parallel_state.get_pipeline_model_parallel_rank() == 0
        )
        self._replaced = 0
        self._told = [0, 0, 0, 0]

    def note(self, batch: Sequence[MicroBatch]) -> None:
        """Count a batch that is trained on."""
        if self._counts_rows:
            self._replaced += sum(each.replaced for each in batch)

    def figures(self) -> dict[str, float | str]:
        """Return the figures since the last call; collective over all ranks.

        quarantined_rows: replaced. data_fetched_bytes: over the network. data_cache_hits: the share
        of pieces of rows that lay in a node's cache. data_cache_damaged: blocks that lay there and
        were fetched again.
        """
        if not self._quarantines and not self._remotes:
            return {}
        counts = [
            (c.parts, c.hits, c.fetched, c.damaged) for c in (r.counts for r in self._remotes)
        ]
        now = [sum(each) for each in zip((0, 0, 0, 0), *counts, strict=True)]
        mine = [self._replaced, *(a - b for a, b in zip(now, self._told, strict=True))]
        self._replaced, self._told = 0, now
        total = torch.tensor(mine, dtype=torch.int64, device=self._device)
        dist.all_reduce(total)
        replaced, parts, hits, fetched, damaged = total.tolist()
        figures: dict[str, float | str] = (
            {"quarantined_rows": replaced} if self._quarantines else {}
        )
        if self._remotes:
            figures["data_fetched_bytes"] = fetched
            figures["data_cache_hits"] = hits / parts if parts else "n/a"
            figures["data_cache_damaged"] = damaged
        return figures
