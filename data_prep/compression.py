"""Reading compressed files so that a truncated or damaged one is an error, never a short read."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from esolm.data_prep.errors import DataError
from esolm.data_prep.pipes import is_piped
from esolm.data_prep.remote import failed, is_of_the_machine, open_bytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
READ_BYTES = 1 << 20
BEGINNINGS = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ\x00": ".xz",
    b"BZh": ".bz2",
}
"""How what is compressed begins."""


def without_compression_suffix(path: Path) -> Path:
    """Return the path without a final suffix of compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path


class _ZstdStream(io.RawIOBase):
    """A stream of the decompressed bytes of one or more zstd frames.

    The stream reader of zstandard ends quietly where a file was cut; this one raises EOFError.
    """

    def __init__(self, source: IO[bytes]) -> None:
        from zstandard import ZstdDecompressor

        self._source = source
        self._decompressor = ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._frame_is_open = False
        self._compressed = b""
        # A memoryview, because slicing bytes copies what remains at every read, and that takes time
        # quadratic in the size of a block.
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        while not self._ready:
            self._compressed = self._compressed or self._source.read(READ_BYTES)
            if not self._compressed:
                if self._frame_is_open:
                    raise EOFError("the last zstd frame is incomplete")
                return 0
            self._decompress()
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._ready))
        view[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self) -> None:
        self._ready = memoryview(self._frame.decompress(self._compressed))
        self._frame_is_open = not self._frame.eof
        self._compressed = b""
        if self._frame.eof:
            self._compressed = self._frame.unused_data
            self._frame = self._decompressor.decompressobj()


@contextmanager
def open_decompressed(path: Path, at_random: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, decompressed by its suffix.

    at_random: whether it must be possible to seek in it. Raises DataError naming the file when we
    may not read it or its compressed data is damaged, and EsolmError when a machine fails.
    """
    from zstandard import ZstdError

    try:
        with (
            open_bytes(path, at_random) as source,
            _decompressed(source, _suffix_of(path, source)) as stream,
        ):
            yield stream
    except (EOFError, lzma.LZMAError, zlib.error, ZstdError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # which is how gzip and bz2 say that this is not their format
            raise _damaged(path, error) from error
        if is_of_the_machine(error):
            raise failed(path, error) from error
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _suffix_of(path: Path, source: IO[bytes]) -> str:
    """Return the suffix that says how a file is compressed; that of a command by how it begins."""
    if not isinstance(source, io.BufferedReader) or not is_piped(path):
        return path.suffix.lower()
    begin = source.peek(max(map(len, BEGINNINGS)))
    return next((suffix for mark, suffix in BEGINNINGS.items() if begin.startswith(mark)), "")


def _decompressed(source: IO[bytes], suffix: str) -> AbstractContextManager[IO[bytes]]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(source))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.open(source))
    if suffix == ".bz2":
        return cast(IO[bytes], bz2.open(source))
    if suffix == ".zst":
        return io.BufferedReader(_ZstdStream(source), READ_BYTES)
    return nullcontext(source)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged or cut short ({error}). Fetch or compress it again.")
