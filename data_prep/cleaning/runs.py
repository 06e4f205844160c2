"""Keys of documents in sorted files, and which documents have a key that an earlier one has.

A task writes its keys in runs of bounded size, each sorted. Keys are evenly spread hashes, so a
range of them is a known part of every run, and ranges are looked through apart from each other, a
window at a time: neither side needs memory that grows with the corpus.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from esolm.data_prep.files import write_atomic

ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u8")])
"""The halves of a key, and the number of the document within its task."""
RUN_ENTRIES = 1 << 20
WINDOW_ENTRIES = 1 << 21
KEYS_END = 1 << 64

Numbers = npt.NDArray[np.uint64]
Part: TypeAlias = tuple[int, npt.NDArray[np.void]]
"""A task and entries of one of its runs."""


class RunWriter:
    """Writes the keys of one task: PREFIX-00000.npy and so on."""

    def __init__(self, prefix: Path, run_entries: int = RUN_ENTRIES) -> None:
        self.paths: list[Path] = []
        self._prefix, self._run_entries = prefix, run_entries
        self._keys = bytearray()
        self._numbers: list[int] = []

    def add(self, key: bytes, number: int) -> None:
        """Add a key of 16 bytes of a document."""
        self._keys += key
        self._numbers.append(number)
        if len(self._numbers) >= self._run_entries:
            self.close()

    def close(self) -> None:
        """Write what is held."""
        if not self._numbers:
            return
        entries = np.empty(len(self._numbers), dtype=ENTRY)
        halves = np.frombuffer(bytes(self._keys), dtype="<u8").reshape(-1, 2)
        entries["high"], entries["low"] = halves[:, 0], halves[:, 1]
        entries["number"] = self._numbers
        self._keys, self._numbers = bytearray(), []
        order = np.lexsort((entries["number"], entries["low"], entries["high"]))
        path = self._prefix.with_name(f"{self._prefix.name}-{len(self.paths):05d}.npy")
        write_atomic(path, npy_bytes(entries[order]))
        self.paths.append(path)


def npy_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """Return an array as the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class Run(NamedTuple):
    """A run and the task that wrote it."""

    task: int
    path: Path


class Later(NamedTuple):
    """Documents that share a key with an earlier one, by task and number in the task, [N] each."""

    tasks: npt.NDArray[np.uint32]
    numbers: Numbers
    stop: int
    """The high halves of keys below it are looked through."""


def later_documents(
    runs: list[Run], start: int, stop: int, window: int = WINDOW_ENTRIES
) -> Iterator[Later]:
    """Yield the documents that are not the first with a key whose high half is in [start, stop).

    The first is that of the smallest task, and in it of the smallest number. A window holds more
    than `window` entries only where a single half of a key has more. One run is open at a time.
    """
    ranges = [(start, stop, runs)]
    while ranges:
        low, high, among = ranges.pop()
        places = [(run, *_places(run.path, low, high)) for run in among]
        places = [place for place in places if place[1] < place[2]]
        total = sum(last - first for _, first, last in places)
        if total > window and high - low > 1:
            middle, within = (low + high) // 2, [run for run, _, _ in places]
            ranges += [(middle, high, within), (low, middle, within)]
        elif total:
            parts = [(run.task, _read(run.path, *place)) for run, *place in places]
            yield Later(*_not_first(parts), high)


# A map takes a file descriptor, and there are more runs than a process may have of those: each is
# mapped only while it is looked at.
def _places(path: Path, low: int, high: int) -> tuple[int, int]:
    """Return where the entries of a range begin and end in a run."""
    halves = np.load(path, mmap_mode="r")["high"]
    first = int(np.searchsorted(halves, np.uint64(low)))
    # The end of all keys is no number of 64 bits.
    last = len(halves) if high >= KEYS_END else int(np.searchsorted(halves, np.uint64(high)))
    return first, last


def _read(path: Path, first: int, last: int) -> npt.NDArray[np.void]:
    return np.array(np.load(path, mmap_mode="r")[first:last])


def _not_first(parts: list[Part]) -> tuple[npt.NDArray[np.uint32], Numbers]:
    entries = np.concatenate([part for _, part in parts])
    tasks = np.concatenate([np.full(len(part), task, dtype=np.uint32) for task, part in parts])
    order = np.lexsort((entries["number"], tasks, entries["low"], entries["high"]))
    entries, tasks = entries[order], tasks[order]
    same = (entries["high"][1:] == entries["high"][:-1]) & (
        entries["low"][1:] == entries["low"][:-1]
    )
    # A document may have a key twice; it is no repeat of itself.
    itself = (tasks[1:] == tasks[:-1]) & (entries["number"][1:] == entries["number"][:-1])
    is_later = np.concatenate([[False], same & ~itself])
    return tasks[is_later], entries["number"][is_later]
