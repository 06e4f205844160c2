"""A folder of bounded size on this node, in which processes share what they fetched."""

import contextlib
import fcntl
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import temporary_path

logger = logging.getLogger(__name__)

PARTS = 64
"""Folders that blocks are shared out to by their names, each with its part of the bound, so that
few names are looked at where room is made."""
FETCH_LOCKS = 1024
KEPT_SHARE = 0.9
"""What is left of a part's bound when room has been made, so that it is not made for each block."""
TOUCH_SECONDS = 60.0
LEFTOVER_SECONDS = 600.0
"""A block that is being written for so long is one of a process that was killed."""
DEFAULT_BYTES = 50_000_000_000
SMALLEST_BYTES = 250_000_000


@dataclass(frozen=True)
class CachePlace:
    """Where fetched tokens are kept. directory: empty for one in TMPDIR. num_bytes: at most."""

    directory: str = ""
    num_bytes: int = DEFAULT_BYTES

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return Path(self.directory or f"{tempfile.gettempdir()}/esolm-data-{os.getuid()}")


class BlockCache:
    """Blocks by name, shared by processes; the least recently used go first.

    A block has its name only once it is whole; whether it is what was written is for the reader to
    check, as the disk may lose what was not synced.
    """

    def __init__(self, place: CachePlace) -> None:
        """Raise DataError if the folder cannot be made or belongs to another user."""
        self.folder = place.folder
        self._bound = place.num_bytes // PARTS
        self._told_full = False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.folder.stat().st_uid
            for name in ("locks", *(f"blocks/{part:02x}" for part in range(PARTS))):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"data.cache_dir {self.folder} cannot be used ({error.strerror}): name a folder "
                "on a disk of this node that has room."
            ) from error
        if owner != os.getuid():
            raise DataError(
                f"data.cache_dir {self.folder} belongs to another user: name one of your own."
            )

    def open(self, name: str) -> int | None:
        """Return the descriptor of a block for reading, or None if it is not here."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY)
        except OSError:  # not there, or on a disk that fails: it is fetched
            return None
        if time.time() - os.fstat(descriptor).st_mtime > TOUCH_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(descriptor)
        return descriptor

    def put(self, name: str, content: bytes) -> None:
        """Keep a block, if there is room for it on the disk and within the bound."""
        path = self._path(name)
        if len(content) > KEPT_SHARE * self._bound:
            return
        temporary = temporary_path(path)
        try:
            self._make_room(path.parent, len(content))
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._told_full:
                self._told_full = True
                logger.warning(
                    "%s cannot be written (%s): what is fetched is used and not kept, which is "
                    "slow; free space there, or set data.cache_dir or data.cache_bytes",
                    self.folder,
                    error.strerror,
                )

    def drop(self, name: str) -> None:
        """Forget a block that is not what was written."""
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def fetching(self, name: str) -> Iterator[None]:
        """Have no other thread or process of this node fetch the same block until this ends."""
        number = zlib.crc32(name.encode()) % FETCH_LOCKS
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # of a full disk; it is then fetched more than once
                held.enter_context(self.locked(f"fetch-{number:03x}"))
            yield

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[int]:
        """Hold a lock of this folder, by its descriptor; a process that is killed lets go of it."""
        descriptor = os.open(self.folder / "locks" / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> Path:
        part = zlib.crc32(name.encode()) % PARTS
        return self.folder / "blocks" / f"{part:02x}" / name

    def _make_room(self, folder: Path, num_bytes: int) -> None:
        """Count so many bytes more in a part of the cache, before they are written."""
        with self.locked(f"used-{folder.name}") as counter:
            used = int.from_bytes(os.pread(counter, 8, 0), "little") + num_bytes
            if used > self._bound:
                used = _shrunk(folder, int(KEPT_SHARE * self._bound) - num_bytes) + num_bytes
            os.pwrite(counter, used.to_bytes(8, "little"), 0)


def _shrunk(folder: Path, num_bytes: int) -> int:
    """Remove the blocks of a folder that were used least recently; return the bytes that stay."""
    found, used = [], 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # another process has dropped it
            about = entry.stat()
            used += about.st_size
            is_written = entry.name.endswith(".tmp")
            if not is_written or time.time() - about.st_mtime > LEFTOVER_SECONDS:
                found.append((not is_written, about.st_mtime, about.st_size, entry.path))
    for is_whole, _, size, path in sorted(found):
        if used <= num_bytes and is_whole:
            break
        Path(path).unlink(missing_ok=True)
        used -= size
    return used
