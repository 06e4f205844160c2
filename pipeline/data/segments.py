"""Which source each sample of a run is of: a pure function of its number and of a few integers.

A run has one segment, and one more for each time that its sources were changed on the way. Within a
segment samples come in windows of 1,024. How many of a window are of each source is exact
(`quotas.py`); in which places is a permutation keyed by the seed and the window. The n-th sample of
a source is the n-th in the order of the run, over all segments: so a source that stays goes on
where it was, and its epochs are permutations of it whatever the other sources do.

The functions here fix the data order of every run ever started: they must not change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from esolm.pipeline.data.index import permute
from esolm.pipeline.data.quotas import Quotas

Int64Array = npt.NDArray[np.int64]

WINDOW = 1024
KEPT_WINDOWS = 64
# Windows are permuted under another key than the sequences of a source.
_WINDOW_STREAM = 0x6D69_7874_7572_6573


@dataclass(frozen=True)
class SourceShare:
    """What a source gives to a segment.

    fingerprint: of its dataset, which is what a source is known by. name and path: what it was
    called, and where it was.
    """

    fingerprint: str
    weight: float
    name: str
    path: str


@dataclass(frozen=True)
class MixtureSegment:
    """The samples from first_sample on, up to the next segment."""

    first_sample: int
    shares: tuple[SourceShare, ...]


class MixtureIndex:
    """Where each global sample of a run lies: O(1) for any sample, any number of restarts."""

    def __init__(self, segments: Sequence[MixtureSegment], seed: int) -> None:
        """segments: at least one, the first from sample 0 on, in order and none empty."""
        assert segments[0].first_sample == 0
        self.segments = tuple(segments)
        known = [share.fingerprint for segment in segments for share in segment.shares]
        self.fingerprints = list(dict.fromkeys(known))
        """The sources of all segments; their numbers are places in this list."""
        self._seed = seed ^ _WINDOW_STREAM
        self._firsts = np.array([segment.first_sample for segment in segments], dtype=np.int64)
        assert (np.diff(self._firsts) > 0).all()
        self._quotas = [Quotas([share.weight for share in s.shares]) for s in segments]
        self._numbers = [
            np.array([self.fingerprints.index(share.fingerprint) for share in s.shares])
            for s in segments
        ]
        self._window = lru_cache(maxsize=KEPT_WINDOWS)(self._make_window)
        self._before: list[Int64Array] = [np.zeros(len(self.fingerprints), dtype=np.int64)]
        for number, first in enumerate(self._firsts[1:].tolist()):
            self._before.append(self._taken(number, first))

    def locate(self, global_sample_indices: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return (source [N], which of its samples [N]) of global samples [N]."""
        indices = np.asarray(global_sample_indices, dtype=np.int64)
        if len(self.fingerprints) == 1:
            return np.zeros_like(indices), indices
        segments = np.searchsorted(self._firsts, indices, side="right") - 1
        windows, places = np.divmod(indices - self._firsts[segments], WINDOW)
        sources, occurrences = np.empty_like(indices), np.empty_like(indices)
        for segment, window in dict.fromkeys(zip(segments.tolist(), windows.tolist(), strict=True)):
            here = np.flatnonzero((segments == segment) & (windows == window))
            of_place, numbers = self._window(segment, window)
            sources[here] = of_place[places[here]]
            occurrences[here] = numbers[places[here]]
        return sources, occurrences

    def taken(self, num_samples: int) -> list[int]:
        """Return how many of the first num_samples samples of the run are of each source."""
        segment = int(np.searchsorted(self._firsts, num_samples, side="right")) - 1
        counts: list[int] = self._taken(segment, num_samples).tolist()
        return counts

    def _taken(self, segment: int, num_samples: int) -> Int64Array:
        window, place = divmod(num_samples - int(self._firsts[segment]), WINDOW)
        counts = self._before[segment].copy()
        counts[self._numbers[segment]] += self._quotas[segment].counts(WINDOW * window)
        if place:
            in_window = self._window(segment, window)[0][:place]
            counts += np.bincount(in_window, minlength=len(counts))
        return counts

    def _make_window(self, segment: int, window: int) -> tuple[Int64Array, Int64Array]:
        """Return (source [1024], which of its samples [1024]) of the places of a window."""
        quotas, numbers = self._quotas[segment], self._numbers[segment]
        before = np.array(quotas.counts(WINDOW * window), dtype=np.int64)
        sizes = np.array(quotas.counts(WINDOW * (window + 1)), dtype=np.int64) - before
        first = self._firsts[segment] + WINDOW * window
        key = np.full(WINDOW, first, dtype=np.int64)
        ranks = permute(np.arange(WINDOW, dtype=np.int64), WINDOW, self._seed, key)
        shares = np.searchsorted(np.cumsum(sizes), ranks, side="right")
        # Equal shares keep the order of their places, so the run meets a source's samples in order.
        order = np.argsort(shares, kind="stable")
        starts = np.cumsum(sizes) - sizes
        offsets = self._before[segment][numbers] + before - starts
        occurrences = np.empty(WINDOW, dtype=np.int64)
        occurrences[order] = np.arange(WINDOW) + offsets[shares[order]]
        return numbers[shares], occurrences
