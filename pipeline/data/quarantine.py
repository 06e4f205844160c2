"""Rows that touch damaged tokens, and the rows that a run reads in their places.

The row in the place of a damaged one is a pure function of the tokens on disk, the number of the
row and the seed, so a run keeps nothing of it in its checkpoints: in every layout and after every
restart it is the same, as long as the damage is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.pipeline.data.damage import CUT_SHORT, DamagedPart, DamagedTokensError
from esolm.pipeline.data.index import permute

Int64Array = npt.NDArray[np.int64]

MOST_TRIES = 64
"""The rows that are tried in the place of a damaged one; of a source with that much damage no more
is to be expected."""
# Rows are replaced under another key than they are shuffled with.
_REPLACEMENT_STREAM = 0x7175_6172_616E_7469


@dataclass(frozen=True)
class Met:
    """Damage that a row touched. sample: the global number of the sample that it was read for."""

    part: DamagedPart
    source: str
    split: str
    sample: int


@dataclass(frozen=True)
class SourceRows:
    """The rows of a source by their numbers below size. read: gives the rows [N, L] of [N]."""

    read: Callable[[Int64Array], Int64Array]
    size: int
    seed: int
    source: str
    split: str


@dataclass
class Quarantine:
    """Reads rows, and others in the places of those that touch damage.

    tell: called once with each damaged part that this process meets. replaced: rows so far.
    """

    tell: Callable[[Met], None]
    replaced: int = 0
    _known: set[tuple[str, int]] = field(default_factory=set)

    def apart(self) -> "Quarantine":
        """Return one that tells of nothing that this one has told of, and counts anew."""
        return Quarantine(self.tell, 0, self._known)

    def read(self, rows: SourceRows, numbers: Int64Array, samples: Int64Array) -> Int64Array:
        """Return the rows [N, L] with these numbers [N], read for the samples [N].

        Raises DataError if a damaged row and all that were tried in its place are damaged.
        """
        try:
            return rows.read(numbers)
        except DamagedTokensError:
            pairs = zip(numbers.tolist(), samples.tolist(), strict=True)
            return np.concatenate([self._sound(rows, number, sample) for number, sample in pairs])

    def _sound(self, rows: SourceRows, number: int, sample: int) -> Int64Array:
        for attempt in range(MOST_TRIES + 1):
            other = np.array([number if attempt == 0 else replacement(rows, number, attempt)])
            try:
                found = rows.read(other)
            except DamagedTokensError as error:
                self._note(rows, error, sample)
                last = error
                continue
            self.replaced += attempt > 0
            return found
        raise DataError(
            f"{rows.source}: row {number} and all {MOST_TRIES} rows that were tried in its place "
            f"touch damaged tokens, so there is too much damage to go on without. {last}"
        ) from last

    def _note(self, rows: SourceRows, error: DamagedTokensError, sample: int) -> None:
        for part in error.parts:
            # A shard that was cut short is damaged at one place, whichever of its rows met it.
            key = (part.shard, -1 if part.problem == CUT_SHORT else part.byte)
            if key not in self._known:
                self._known.add(key)
                self.tell(Met(part, rows.source, rows.split, sample))


def replacement(rows: SourceRows, number: int, attempt: int) -> int:
    """Return the row that is tried in the place of a damaged one, another at each attempt >= 1.

    Places of a keyed permutation from the row's own on, so that neighbours, which are damaged
    together, are not replaced by one and the same row.
    """
    place = np.array([(number + attempt) % rows.size], dtype=np.int64)
    seed = rows.seed ^ _REPLACEMENT_STREAM
    return int(permute(place, rows.size, seed, np.zeros(1, dtype=np.int64))[0])
