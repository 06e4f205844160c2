"""Shares of a corpus that are equal in bytes, one for each task.

The files stand one behind the other, and share k of n is what begins within the k-th n-th of their
bytes. A file that can be cut falls into stretches there; one that cannot, or is at an address, goes
to the share of its middle as a whole. So the shares in their order are the corpus in its order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from esolm.data_prep.errors import DataError
from esolm.data_prep.known_formats import formats
from esolm.data_prep.remote import is_url
from esolm.data_prep.sources import SourceFile


@dataclass(frozen=True)
class Stretch:
    """The documents of a file that begin at a byte from `start` up to, without, `stop`."""

    source: SourceFile
    start: int
    stop: int

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole file."""
        return self.start == 0 and self.stop >= self.source.num_bytes

    @property
    def num_bytes(self) -> int:
        """The bytes that it takes on disk."""
        return self.stop - self.start


def slice_of(files: Sequence[SourceFile], task: int, num_tasks: int) -> tuple[Stretch, ...]:
    """Return what a task reads of a corpus."""
    total = sum(source.num_bytes for source in files)
    start, stop = (total * number // num_tasks for number in (task, task + 1))
    found, place = [], 0
    for source in files:
        end = place + source.num_bytes
        first, last = max(start, place), min(stop, end)
        if source.num_bytes == 0:
            # It holds no document, or what its format says of an empty file, and one task says so.
            if start <= place < stop or (place == total and task == num_tasks - 1):
                found.append(Stretch(source, 0, 0))
        elif first < last and (last - first == source.num_bytes or _can_be_cut(source)):
            found.append(Stretch(source, first - place, last - place))
        elif first < last and start <= (place + end) // 2 < stop:
            found.append(Stretch(source, 0, source.num_bytes))
        place = end
    return tuple(found)


def _can_be_cut(source: SourceFile) -> bool:
    # Which task would read it, were it whole, says once what is wrong with one that is unreadable.
    try:
        if is_url(source.path) or not os.access(source.path, os.R_OK):
            return False
        return formats()[source.format].can_be_cut(source.path)
    except DataError:
        return False
