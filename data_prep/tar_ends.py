"""Whether a tar is whole: tarfile ends in silence where a header is damaged or missing."""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from esolm.data_prep.compression import READ_BYTES, open_decompressed
from esolm.data_prep.errors import DataError


def damaged_archive(path: Path, problem: str) -> DataError:
    """Return the error of an archive that is not what was written."""
    return DataError(f"{path} is damaged or cut short ({problem}). Fetch or write it again.")


def check_tar(path: Path) -> None:
    """Raise DataError if a tar in a file is not whole."""
    with open_decompressed(path, at_random=True) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for _ in tar:
                    tar.members = []  # type: ignore[attr-defined]
                end = tar.offset
        except tarfile.TarError as error:
            raise damaged_archive(path, str(error)) from error
        stream.seek(end)
        check_end(path, end, iter(lambda: stream.read(READ_BYTES), b""))


def check_end(path: Path, end: int, rest: Iterable[bytes]) -> None:
    """Raise DataError unless what stands behind the last member is the end of a tar.

    end: where the last member ends, in bytes. rest: what the tar holds from there on.
    """
    padding = 0
    for block in rest:
        padding += len(block)
        if block.count(0) < len(block):
            raise damaged_archive(path, f"no header of a member at byte {end}")
    if padding < tarfile.BLOCKSIZE:
        raise damaged_archive(path, "its end is missing")


class KeptStream:
    """A stream that is read once, and still has what tarfile took for the end of the tar."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._recent, self._place = b"", 0

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most so many."""
        content = self._stream.read(size)
        # tarfile reads by records, and the block that it stumbled over may stand in the last but
        # one of them.
        self._recent = (self._recent + content)[-2 * tarfile.RECORDSIZE :]
        self._place += len(content)
        return content

    def rest_from(self, place: int) -> Iterator[bytes]:
        """Yield everything from a byte on that was read lately, or not yet."""
        yield self._recent[place - (self._place - len(self._recent)) :]
        while block := self._stream.read(READ_BYTES):
            yield block
