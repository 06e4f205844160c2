"""Global batches as one replica sees them: tokens, corrupted by the objective, in pieces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from esolm.model.attention import FLEX_BLOCK
from esolm.model.inputs import without_idle
from esolm.model.kernels import kernels_in_use
from esolm.model.objectives import Objective, SampleKeys
from esolm.model.objectives.base import term_of
from esolm.model.objectives.noise import EPSILON
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.data.mixture import MixtureReader
from esolm.pipeline.data.reader import SampleReader

# Validation draws its noise from another key than training does.
VALIDATION_SEED = 1 << 63
# The losses of so many equal parts of the range of t are reported separately.
NUM_TIME_BUCKETS = 4
# What is left out of the noised stream is a multiple of this, so that there are few shapes.
SKIP_MULTIPLE = 32


def skip_multiple() -> int:
    """Return of how many tokens the noised stream loses a whole number with this run's kernels."""
    # FlexAttention is compiled for every length, and computes blocks of so many tokens anyway.
    return FLEX_BLOCK if kernels_in_use().flex_attention else SKIP_MULTIPLE


@dataclass(frozen=True)
class BatchSource:
    """Makes the micro-batches of one data-parallel rank.

    Micro-batch m of replica r holds slots [(m * dp + r) * b, ... + b) of the global batch, so a
    global batch is the same set of rows for every number of replicas. skip_multiple: of noised
    tokens without loss so many, times a whole number, are left out of every row. cp_rank, cp_size:
    which part of every row's targets a context-parallel rank gets; inputs are those of whole rows.
    """

    reader: MixtureReader | SampleReader
    objective: Objective
    seed: int
    global_batch_size: int
    micro_batch_size: int
    dp_rank: int
    dp_size: int
    with_sources: bool = False
    """Whether micro-batches say which source of a mixture each row is of."""
    skip_multiple: int = SKIP_MULTIPLE
    cp_rank: int = 0
    cp_size: int = 1

    def batch(self, first_sample: int, context: int = 0) -> list[MicroBatch]:
        """Return the micro-batches of the global batch that starts at a global sample index.

        context: how many tokens of a row see each other at most; 0: all of them.
        """
        if context:
            return self.with_context(context).batch(first_sample)
        keys = [self.keys(first_sample, slot) for slot in self.first_slots()]
        quarantine = self.reader.quarantine
        before = quarantine.replaced if quarantine else 0
        # All rows at once: what a reader does before the first row it does once.
        tokens = self.reader.read(np.concatenate([each.sample_index for each in keys]))
        rows = np.split(tokens, len(keys))
        batch = [self._micro_batch(*each) for each in zip(keys, rows, strict=True)]
        replaced = quarantine.replaced - before if quarantine else 0
        return [replace(batch[0], replaced=replaced), *batch[1:]]

    def first_slots(self) -> range:
        """Return the first slot of each micro-batch."""
        return range(
            self.dp_rank * self.micro_batch_size,
            self.global_batch_size,
            self.dp_size * self.micro_batch_size,
        )

    def keys(self, first_sample: int, first_slot: int) -> SampleKeys:
        """Return the keys of the rows of the micro-batch whose first slot this is."""
        slots = np.arange(first_slot, first_slot + self.micro_batch_size, dtype=np.int64)
        return SampleKeys(self.seed, first_sample + slots, slots, self.global_batch_size)

    def batches(self, first_sample: int, contexts: Iterable[int]) -> Iterator[list[MicroBatch]]:
        """Yield global batches from a sample index on, one for each of the contexts."""
        for context in contexts:
            yield self.batch(first_sample, context)
            first_sample += self.global_batch_size

    def with_context(self, length: int) -> "BatchSource":
        """Return the same rows, of which tokens see those of their own `length` tokens alone."""
        objective = self.objective.with_context(length)
        assert objective is not None, "the configuration was checked"
        return replace(self, objective=objective)

    def for_validation(self, reader: SampleReader) -> "BatchSource":
        """Return the same split of rows, over other samples, with the bound's own weights."""
        return replace(
            self,
            reader=reader,
            objective=self.objective.for_validation(),
            seed=self.seed ^ VALIDATION_SEED,
            with_sources=False,
        )

    def _micro_batch(self, keys: SampleKeys, rows: NDArray[np.int64]) -> MicroBatch:
        tokens = torch.from_numpy(rows)
        inputs, targets = without_idle(*self.objective.corrupt(tokens, keys), self.skip_multiple)
        sources = None
        if self.with_sources:
            assert isinstance(self.reader, MixtureReader)
            sources = tuple(self.reader.index.locate(keys.sample_index)[0].tolist())
        return MicroBatch(
            inputs=(inputs.tokens, inputs.positions, inputs.rows()),
            targets=targets.part(self.cp_rank, self.cp_size).sparse(),
            term=term_of(self.objective, keys),
            bucket=None if targets.times is None else _bucket_of(targets.times),
            sources=sources,
        )


def _bucket_of(times: NDArray[np.float64]) -> int | None:
    """Return the equal part of the range of t that all of these lie in; None if they lie in more.

    t is stratified over the slots, so the rows of a micro-batch are neighbours in t.
    """
    numbers = ((times - EPSILON) / (1.0 - EPSILON) * NUM_TIME_BUCKETS).astype(np.int64)
    first, last = int(numbers.min()), int(numbers.max())
    return min(first, NUM_TIME_BUCKETS - 1) if first == last else None
