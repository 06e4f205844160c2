"""Files that are read at any place by several threads, of which only some are open at a time."""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import sha256_of_file

MAX_OPEN_FILES = 256
ADVICE = "`esolm prep verify` of the dataset names all damage, and how it is repaired."


class OpenFile:
    """A descriptor that is closed when its last user lets go of it, whichever thread that is."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """Open for as long as its reader holds this object."""

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Return the bytes from an offset on, fewer where the file ends."""
        return os.pread(self.descriptor, num_bytes, offset)

    def size(self) -> int:
        """Return how many bytes the file has now."""
        return os.fstat(self.descriptor).st_size


def file_in_memory(content: bytes) -> OpenFile:
    """Return what there is no room for on a disk as an open file."""
    file = OpenFile(os.memfd_create("fetched"))
    with open(file.descriptor, "wb", closefd=False) as stream:
        stream.write(content)
    return file


class OpenFiles:
    """The most recently used shards, kept open; safe to use from several threads."""

    def __init__(
        self,
        paths: list[Path],
        sha256: list[str] | None = None,
        openers: Mapping[int, Callable[[], OpenFile]] | None = None,
    ) -> None:
        """sha256: what a whole file must have, which is looked at when it is first opened.

        openers: what opens those that lie elsewhere, and has looked at that.
        """
        self._paths = paths
        self._openers = openers or {}
        self._unproven = dict(enumerate(sha256 or []))
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = Lock()

    def get(self, number: int) -> OpenFile:
        with self._lock:
            file = self._open.get(number)
            if file is None:
                file = self._open[number] = self._opened(number)
                if len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return file

    def _prove(self, number: int) -> None:
        expected = self._unproven.get(number)
        if expected is None:
            return
        try:
            found = sha256_of_file(self._paths[number])
        except FileNotFoundError as error:
            raise self._gone(number) from error
        if found != expected:
            raise DataError(
                f"{self._paths[number]}: changed, sha256 {expected} expected, {found} found. "
                f"{ADVICE}"
            )
        del self._unproven[number]

    def _opened(self, number: int) -> OpenFile:
        if number in self._openers:
            return self._openers[number]()
        self._prove(number)
        try:
            return OpenFile(os.open(self._paths[number], os.O_RDONLY))
        except FileNotFoundError as error:
            raise self._gone(number) from error

    def _gone(self, number: int) -> DataError:
        return DataError(
            f"{self._paths[number]} is missing. Put it back, or make it again. {ADVICE}"
        )
