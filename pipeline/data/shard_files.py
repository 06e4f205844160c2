"""The shards of a split as open files, whose tokens are compared with their checksums when read."""

import os
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from data_prep.errors import DataError, EsolmError
from data_prep.files import sha256_of_file
from data_prep.layout import BLOCK_TOKENS, MEMBER_TOKENS, ShardInfo
from data_prep.manifest import repair_advice

Place: TypeAlias = tuple[int, int, int, int]
"""Where tokens begin, and how many may be read from there.

The shard, the byte in its tar, the position in the shard, and the tokens from there to the end of
the member or of the shard.
"""
MAX_OPEN_SHARDS = 128
"""Of each a tar and its checksums are open."""


class _OpenFile:
    """A descriptor that is closed when its last user lets go of it, whichever thread that is."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read_into(self, row: npt.NDArray[np.generic], offset: int) -> int:
        """Fill a row from a byte offset and return the bytes found.

        A method, so that the caller's reference keeps the descriptor open until the read is done.
        """
        return os.preadv(self._descriptor, [row.data], offset)

    def read(self, num_bytes: int, offset: int) -> bytes:
        return os.pread(self._descriptor, num_bytes, offset)


class ShardFiles:
    """The most recently used shards, kept open; safe to use from several threads.

    checked: whether tokens are compared with the crc32 of their blocks. Shards that have none are
    read without.
    """

    def __init__(self, data: Path, shards: list[ShardInfo], checked: bool) -> None:
        self._data = data
        self._shards = shards
        self._checked = checked
        self._open: OrderedDict[int, tuple[_OpenFile, _OpenFile | None]] = OrderedDict()
        self._proven: set[int] = set()
        self._lock = Lock()

    def path(self, shard: int) -> Path:
        """Return the path of the tar of a shard."""
        return self._data / self._shards[shard].name

    def read(self, place: Place, row: npt.NDArray[np.generic]) -> None:
        """Fill a row with the tokens of a place, which holds as many.

        Raises DataError if the shard is shorter than it was, or its tokens are not those that were
        written, and EsolmError if the file system does not give them.
        """
        try:
            self._read(place, row)
        except FileNotFoundError as error:
            raise DataError(
                f"{error.filename} does not exist. {repair_advice(self._data)}"
            ) from error
        except (OSError, struct.error) as error:
            raise EsolmError(
                f"{self.path(place[0])} or its checksums cannot be read ({error}). Mend the access "
                "to the dataset, and start again: the run goes on from its newest checkpoint."
            ) from error

    def _read(self, place: Place, row: npt.NDArray[np.generic]) -> None:
        shard, offset, position, available = place
        tar, crcs = self._get(shard)
        if crcs is None:
            self._fill(tar, shard, offset, row)
            return
        before = position % BLOCK_TOKENS
        num_blocks = -(-(before + len(row)) // BLOCK_TOKENS)
        blocks = np.empty(min(num_blocks * BLOCK_TOKENS, before + available), dtype=row.dtype)
        start, first = offset - before * row.itemsize, position // BLOCK_TOKENS
        self._fill(tar, shard, start, blocks)
        expected = struct.unpack(f"<{num_blocks}I", crcs.read(4 * num_blocks, 4 * first))
        content, size = blocks.data.cast("B"), BLOCK_TOKENS * row.itemsize
        for i in range(num_blocks):
            found = zlib.crc32(content[i * size : (i + 1) * size])
            if found != expected[i]:
                raise self._damage(shard, first + i, start + i * size, expected[i], found)
        row[:] = blocks[before : before + len(row)]

    def _fill(self, tar: _OpenFile, shard: int, offset: int, row: npt.NDArray[np.generic]) -> None:
        found = tar.read_into(row, offset)
        if found != row.nbytes:
            raise DataError(
                f"{self.path(shard)}: {row.nbytes} bytes expected at byte {offset}, {found} "
                f"found: it was cut short while in use. {repair_advice(self._data)}"
            )

    def _get(self, shard: int) -> tuple[_OpenFile, _OpenFile | None]:
        with self._lock:
            files = self._open.get(shard)
            if files is None:
                files = self._open[shard] = (_OpenFile(self.path(shard)), self._open_crcs(shard))
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return files

    def _open_crcs(self, shard: int) -> _OpenFile | None:
        """Open the checksums of a shard, which are those of the manifest, if it has any."""
        info = self._shards[shard]
        if not self._checked or not info.crcs_name:
            return None
        path = self._data / info.crcs_name
        file = _OpenFile(path)
        if shard not in self._proven:
            found = sha256_of_file(path)
            if found != info.crcs_sha256:
                raise DataError(
                    f"{path}: changed, sha256 {info.crcs_sha256} expected, {found} found. "
                    f"{repair_advice(self._data)}"
                )
            self._proven.add(shard)
        return file

    def _damage(self, shard: int, block: int, offset: int, expected: int, found: int) -> DataError:
        member = block * BLOCK_TOKENS // MEMBER_TOKENS
        return DataError(
            f"{self.path(shard)}, member {member}, the {BLOCK_TOKENS} tokens from byte {offset} "
            f"on: crc32 {expected:08x} expected, {found:08x} found: the shard is damaged. "
            f"{repair_advice(self._data)}"
        )
