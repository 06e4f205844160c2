"""Files at an address, read by fsspec through paths that look like those of this machine."""

import errno
import io
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.pipes import PipedCommand, open_output

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MARK = "://"
BUFFER_BYTES = 1 << 20


def is_url(given: str | Path) -> bool:
    """Say whether this is an address, and no path on this machine."""
    return MARK in given if isinstance(given, str) else not isinstance(given, Path)


def shown(url: str) -> str:
    """Return the URL without a user's name and password in it, for logs and records."""
    return re.sub("//[^/@]*@", "//", url)


def local_path(given: str | Path) -> str | Path:
    """Return the path that an address of this machine (file://) names, or what was given."""
    if isinstance(given, str) and given.startswith(("file://", "local://")):
        return Path(given.partition(MARK)[2])
    return given


def path_of(given: str) -> Path:
    """Return a path, or what stands for it at an address of a protocol that fsspec knows.

    Raises DataError if it knows none such, or a package for it is missing.
    """
    if not is_url(given):
        return Path(given)
    from upath import UPath

    try:
        path = UPath(given)
        path.fs  # noqa: B018  # what is missing shows now
    except (ImportError, ValueError) as error:
        raise DataError(f"{given} cannot be opened ({error}).") from error
    return cast(Path, path)


def names_below(folder: Path, pattern: str = "") -> list[str]:
    """Return the files below a folder at an address, or those that match, by relative names.

    Hidden ones are left out. Raises what the protocol raises.
    """
    remote: Any = folder
    root = str(remote.path).rstrip("/")
    if pattern:
        found = remote.fs.glob(f"{root}/{pattern}", detail=True)
    else:
        found = remote.fs.find(f"{root}/", detail=True)
    files = [name for name, about in found.items() if about["type"] == "file"]
    names = sorted(name.removeprefix(root).lstrip("/") for name in files)
    return [name for name in names if not any(p.startswith(".") for p in name.split("/"))]


def open_bytes(path: Path, at_random: bool = False) -> IO[bytes]:
    """Open a file for reading, here or at an address, or the output of a command.

    at_random: whether it must be possible to seek, which a plain server for HTTP does not let one.
    Raises OSError; opening and reading at an address raise EsolmError, whatever fails.
    """
    if isinstance(path, PipedCommand):
        return open_output(path)
    if not is_url(path):
        return open(path, "rb")
    streamed = str(path).startswith("http") and not at_random
    try:
        size = path.stat().st_size
        stream = cast(Any, path).open("rb", **({"block_size": 0} if streamed else {}))
    except Exception as error:  # each protocol has its own
        raise failed(path, error) from error
    kind = _RandomStream if at_random else _RemoteStream
    return io.BufferedReader(kind(stream, path, size), BUFFER_BYTES)


def is_absent(error: FileNotFoundError) -> bool:
    """Say whether a server has answered that there is no such file, and not failed to answer.

    fsspec says FileNotFoundError of both; the reason is its cause.
    """
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None or type(cause).__module__.startswith("aiohttp"):
        return status in (404, 410)
    return cause is None or isinstance(cause, FileNotFoundError) or not isinstance(cause, OSError)


def is_of_the_machine(error: OSError) -> bool:
    """Say whether a disk, a mount or a limit has failed, and not a file is bad or closed to us.

    Libraries say without a number that a file is not of their format.
    """
    return error.errno not in (None, errno.EACCES, errno.EPERM)


def failed(path: Path, error: BaseException | None) -> EsolmError:
    """Return the error of a connection or a machine. It is no DataError: the file may be well."""
    return EsolmError(
        f"{path} could not be read ({type(error).__name__}: {error}). Run the same command again: "
        "finished tasks are skipped."
    )


class _RemoteStream(io.RawIOBase):
    """A file at an address that is read to its end, which is where its size says."""

    def __init__(self, stream: Any, path: Path, size: int | None) -> None:
        self._stream, self._path, self._size = stream, path, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        try:
            content = self._stream.read(len(view))
        except Exception as error:
            raise failed(self._path, error) from error
        if not content and self._size is not None and self._place < self._size:
            cut = EOFError(f"it ended after {self._place:,} of {self._size:,} bytes")
            raise failed(self._path, cut)
        view[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _RandomStream(_RemoteStream):
    """One in which it is possible to seek."""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            self._place = self._stream.seek(offset, whence)
        except Exception as error:
            raise failed(self._path, error) from error
        return self._place

    def tell(self) -> int:
        return self._place
