"""Randomness keyed by data: every draw is a counter-based function of (seed, sample, purpose).

The generator is Philox 4x64. Its key is (seed, purpose) and the high word of its counter is the
global sample index, so any rank can make the draws of any sample, in any order, and there is no
state to save.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a draw is for. The draws depend on these numbers, so never renumber them."""

    MASK = 0
    ORDER = 1
    TIME = 2
    DROPOUT = 3


@dataclass(frozen=True)
class SampleKeys:
    """What identifies the rows of a micro-batch, so that their draws can be repeated.

    sample_index: int64 [B], the global index of the sample. slot: int64 [B], the place of the row
    in its global batch, over which t is stratified.
    """

    seed: int
    sample_index: NDArray[np.int64]
    slot: NDArray[np.int64]
    global_batch_size: int

    def uniforms(self, purpose: Purpose, count: int) -> NDArray[np.float64]:
        """Draws [B, count] numbers, uniform on [0, 1) with 53 bits."""
        return (self._raw(purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def dropout_keys(self) -> NDArray[np.int64]:
        """Returns the dropout key of each row, [B], which depends on its sample alone."""
        return self._raw(Purpose.DROPOUT, 1)[:, 0].view(np.int64)

    def _raw(self, purpose: Purpose, count: int) -> NDArray[np.uint64]:
        rows = [
            np.random.Philox(
                key=np.array([self.seed, purpose], dtype=np.uint64),
                counter=np.array([0, 0, 0, index], dtype=np.uint64),
            ).random_raw(count)
            for index in self.sample_index
        ]
        return np.stack(rows)
