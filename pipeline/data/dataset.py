"""A split of a prepared dataset as one stream of tokens, read at any place."""

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import (
    MEMBER_TOKENS,
    TOKENIZER_DIRECTORY,
    ShardInfo,
    read_manifest,
    repair_advice,
    shard_problems,
)

Int64Array = npt.NDArray[np.int64]

MAX_OPEN_FILES = 256


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


class _OpenFiles:
    """The most recently used shards, kept open; safe to use from several threads."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def get(self, number: int) -> _OpenFile:
        with self._lock:
            file = self._open.get(number)
            if file is None:
                file = self._open[number] = _OpenFile(self._paths[number])
                if len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return file


class TokenDataset:
    """The tokens of one split, its shards end to end; each document is followed by eos.

    Reading is by position (pread), so threads and forked processes may share an instance.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        """Open a dataset directory.

        Raises DataError when the manifest is missing or damaged, when a shard is missing or has not
        its exact size, or when the split holds no tokens. Contents are checked by `esolm prep
        verify` alone.
        """
        self.path = Path(path)
        self.split = split
        manifest = read_manifest(self.path)
        self.num_tokens = manifest.num_tokens(split)
        if not self.num_tokens:
            sizes = ", ".join(f"{s}: {manifest.num_tokens(s)}" for s in manifest.splits)
            raise DataError(
                f"{self.path} holds no tokens of split '{split}' (tokens by split: {sizes}). "
                "Name another split, or tokenize again with a larger --valid-fraction; a document "
                "is never divided between splits, so cut a corpus of one or few into more."
            )
        shards = manifest.splits[split]
        if problems := shard_problems(self.path, shards):
            raise DataError("\n".join([*problems, repair_advice(self.path)]))
        self.fingerprint = manifest.fingerprint
        self.vocab_size = manifest.tokenizer.vocab_size
        self.mask_id = manifest.tokenizer.mask_id
        self.bos_id = manifest.tokenizer.bos_id
        self.eos_id = manifest.tokenizer.eos_id
        self.tokenizer_fingerprint = manifest.tokenizer.fingerprint
        self.tokenizer_directory = self.path / TOKENIZER_DIRECTORY
        self._dtype = np.dtype(manifest.dtype)
        self._lay_out(shards)

    def _lay_out(self, shards: list[ShardInfo]) -> None:
        self._paths = [self.path / shard.name for shard in shards]
        self._files = _OpenFiles(self._paths)
        ends = np.cumsum([shard.num_tokens for shard in shards], dtype=np.int64)
        self._shard_starts = np.concatenate([[0], ends])
        self._member_offsets = np.array([s.member_offset for s in shards], dtype=np.int64)
        self._member_strides = np.array([s.member_stride for s in shards], dtype=np.int64)

    def read(self, start: int, length: int) -> Int64Array:
        """Return tokens [length] of the stream from position `start`."""
        rows = self.read_many(np.array([start], dtype=np.int64), length)
        return rows.reshape(length)

    def read_many(self, starts: Int64Array, length: int) -> Int64Array:
        """Return tokens [N, length] of the stream from each start [N].

        Raises DataError when a shard is shorter than it was when the dataset was opened, or holds a
        token that is not of the vocabulary.
        """
        if (starts < 0).any() or (starts + length > self.num_tokens).any():
            raise IndexError(f"tokens outside [0, {self.num_tokens}) of {self.path} were asked for")
        rows = np.empty((len(starts), length), dtype=self._dtype)
        shards, offsets, available = self._locate(starts)
        places = zip(shards.tolist(), offsets.tolist(), available.tolist(), strict=True)
        for row, start, (shard, offset, tokens) in zip(rows, starts, places, strict=True):
            if tokens >= length:
                self._pread(shard, offset, row)
            else:
                self._read_pieces(int(start), row)
        if rows.size and int(rows.max()) >= self.vocab_size:
            raise self._foreign_token(starts, rows)
        return rows.astype(np.int64)

    def _foreign_token(self, starts: Int64Array, rows: npt.NDArray[np.generic]) -> DataError:
        """The error that names the first token that is not of the vocabulary, and its place."""
        row, column = np.argwhere(rows >= self.vocab_size)[0]  # type: ignore[operator]
        position = int(starts[row]) + int(column)
        shards, offsets, _ = self._locate(np.array([position], dtype=np.int64))
        shard = int(shards[0])
        member = (position - int(self._shard_starts[shard])) // MEMBER_TOKENS
        return DataError(
            f"{self._paths[shard]}, member {member}, byte {int(offsets[0])}: token "
            f"{int(rows[row, column])} is not of the vocabulary of {self.vocab_size} tokens: the "
            f"shard is damaged. {repair_advice(self.path)}"
        )

    def _locate(self, positions: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Return (shard, byte offset, tokens up to the end of the member or shard), each [N]."""
        shards = np.searchsorted(self._shard_starts, positions, side="right") - 1
        members, within = np.divmod(positions - self._shard_starts[shards], MEMBER_TOKENS)
        offsets = self._member_offsets[shards] + members * self._member_strides[shards]
        available = np.minimum(MEMBER_TOKENS - within, self._shard_starts[shards + 1] - positions)
        return shards, offsets + within * self._dtype.itemsize, available

    def _read_pieces(self, start: int, row: npt.NDArray[np.generic]) -> None:
        """Fill a row that runs over the end of a member or shard."""
        filled = 0
        while filled < len(row):
            shards, offsets, available = self._locate(np.array([start + filled], dtype=np.int64))
            size = min(int(available[0]), len(row) - filled)
            self._pread(int(shards[0]), int(offsets[0]), row[filled : filled + size])
            filled += size

    def _pread(self, shard: int, offset: int, row: npt.NDArray[np.generic]) -> None:
        found = self._files.get(shard).read_into(row, offset)
        if found != row.nbytes:
            raise DataError(
                f"{self._paths[shard]}: {row.nbytes} bytes expected at byte {offset}, {found} "
                f"found: it was cut short while in use. {repair_advice(self.path)}"
            )
