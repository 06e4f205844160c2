"""A split of a prepared dataset as one stream of tokens, read at any place."""

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import CHECKED_TOKENS, CHECKSUM_BYTES, MEMBER_TOKENS, ShardInfo
from esolm.data_prep.manifest import (
    TOKENIZER_DIRECTORY,
    read_manifest,
    repair_advice,
    shard_problems,
)
from esolm.pipeline.data.open_files import OpenFiles

Int64Array = npt.NDArray[np.int64]


class TokenDataset:
    """The tokens of one split, its shards end to end; each document is followed by eos.

    Reading is by position (pread), so threads and forked processes may share an instance.
    """

    def __init__(self, path: str | Path, split: str, checked: bool = True) -> None:
        """Open a dataset directory.

        checked: whether the files' sizes are looked at now, and the checksums of tokens whenever
        they are read. Raises DataError when the manifest is missing or damaged, when a shard is
        missing or has not its exact size, or when the split holds no tokens.
        """
        self.path = Path(path)
        self.split = split
        self.manifest = manifest = read_manifest(self.path)
        self.num_tokens = manifest.num_tokens(split)
        if not self.num_tokens:
            sizes = ", ".join(f"{s}: {manifest.num_tokens(s)}" for s in manifest.splits)
            raise DataError(
                f"{self.path} holds no tokens of split '{split}' (tokens by split: {sizes}). "
                "Name another split, or tokenize again with a larger --valid-fraction; a document "
                "is never divided between splits, so cut a corpus of one or few into more."
            )
        shards = manifest.splits[split]
        if checked and (problems := shard_problems(self.path, shards)):
            raise DataError("\n".join([*problems, repair_advice(self.path)]))
        self.fingerprint = manifest.fingerprint
        self.former_fingerprint = manifest.former_fingerprint
        self.vocab_size = manifest.tokenizer.vocab_size
        self.mask_id = manifest.tokenizer.mask_id
        self.bos_id = manifest.tokenizer.bos_id
        self.eos_id = manifest.tokenizer.eos_id
        self.tokenizer_fingerprint = manifest.tokenizer.fingerprint
        self.tokenizer_directory = self.path / TOKENIZER_DIRECTORY
        self._dtype = np.dtype(manifest.dtype)
        self.shards = shards
        self._lay_out(shards, checked)

    def _lay_out(self, shards: list[ShardInfo], checked: bool) -> None:
        self._paths = [self.path / shard.name for shard in shards]
        self._files = OpenFiles(self._paths)
        has_checksums = checked and all(shard.crc_name for shard in shards)
        checksums = [self.path / shard.crc_name for shard in shards] if has_checksums else []
        # They must be those of the manifest: a shard and its checksums may both be another's.
        digests = [shard.crc_sha256 for shard in shards]
        self._checksums = OpenFiles(checksums, digests) if has_checksums else None
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
        shards = np.searchsorted(self._shard_starts, starts, side="right") - 1
        within = starts - self._shard_starts[shards]
        for row, shard, position in zip(rows, shards.tolist(), within.tolist(), strict=True):
            self._fill(shard, position, row)
        if rows.size and int(rows.max()) >= self.vocab_size:
            raise self._foreign_token(starts, rows)
        return rows.astype(np.int64)

    def _fill(self, shard: int, position: int, row: npt.NDArray[np.generic]) -> None:
        """Fill a row from a position within a shard on, over the ends of members and shards."""
        filled = 0
        while filled < len(row):
            in_shard = int(self._shard_starts[shard + 1] - self._shard_starts[shard])
            member, within = divmod(position, MEMBER_TOKENS)
            in_member = min(MEMBER_TOKENS, in_shard - member * MEMBER_TOKENS)
            size = min(in_member - within, len(row) - filled)
            part = row[filled : filled + size]
            if self._checksums is None:
                self._pread(shard, self._offset(shard, member, within), part)
            else:
                part[:] = self._checked(shard, member, within, size, in_member)
            filled, position = filled + size, position + size
            if position == in_shard:
                shard, position = shard + 1, 0

    def _checked(
        self, shard: int, member: int, within: int, size: int, in_member: int
    ) -> npt.NDArray[np.generic]:
        """Return tokens [size] of a member of in_member tokens, all of whose parts are whole."""
        assert self._checksums is not None
        first = within // CHECKED_TOKENS * CHECKED_TOKENS
        last = min(-(-(within + size) // CHECKED_TOKENS) * CHECKED_TOKENS, in_member)
        tokens = np.empty(last - first, dtype=self._dtype)
        self._pread(shard, self._offset(shard, member, first), tokens)
        expected = np.empty(-(-len(tokens) // CHECKED_TOKENS), dtype="<u4")
        part = (member * MEMBER_TOKENS + first) // CHECKED_TOKENS
        self._checksums.get(shard).read_into(expected, part * CHECKSUM_BYTES)
        for number, checksum in enumerate(expected.tolist()):
            start = number * CHECKED_TOKENS
            if zlib.crc32(tokens[start : start + CHECKED_TOKENS].data) != checksum:
                offset = self._offset(shard, member, first + start)
                raise DataError(
                    f"{self._paths[shard]}, member {member}, byte {offset}: the next "
                    f"{CHECKED_TOKENS} tokens are not what was written. {repair_advice(self.path)}"
                )
        return tokens[within - first : within - first + size]

    def _offset(self, shard: int, member: int, within: int) -> int:
        """The byte of a token of a member in its shard."""
        start = int(self._member_offsets[shard]) + member * int(self._member_strides[shard])
        return start + within * self._dtype.itemsize

    def _foreign_token(self, starts: Int64Array, rows: npt.NDArray[np.generic]) -> DataError:
        """The error that names the first token that is not of the vocabulary, and its place."""
        row, column = np.argwhere(rows >= self.vocab_size)[0]  # type: ignore[operator]
        position = int(starts[row]) + int(column)
        shard = int(np.searchsorted(self._shard_starts, position, side="right")) - 1
        member, within = divmod(position - int(self._shard_starts[shard]), MEMBER_TOKENS)
        place = f"member {member}, byte {self._offset(shard, member, within)}"
        return DataError(
            f"{self._paths[shard]}, {place}: token "
            f"{int(rows[row, column])} is not of the vocabulary of {self.vocab_size} tokens: the "
            f"shard is damaged. {repair_advice(self.path)}"
        )

    def _pread(self, shard: int, offset: int, row: npt.NDArray[np.generic]) -> None:
        found = self._files.get(shard).read_into(row, offset)
        if found != row.nbytes:
            raise DataError(
                f"{self._paths[shard]}: {row.nbytes} bytes expected at byte {offset}, {found} "
                f"found: it was cut short while in use. {repair_advice(self.path)}"
            )
