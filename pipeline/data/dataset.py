"""A split of a prepared dataset as one stream of tokens, read at any place."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.errors import DataError
from data_prep.layout import MEMBER_TOKENS, ShardInfo
from data_prep.manifest import TOKENIZER_DIRECTORY, read_manifest, repair_advice, shard_problems
from data_prep.tokenizers import Tokenizer
from data_prep.verify import checked_tokenizer
from pipeline.data.shard_files import Place, ShardFiles

Int64Array = npt.NDArray[np.int64]


class TokenDataset:
    """The tokens of one split, its shards end to end; each document is followed by eos.

    Reading is by position (pread), so threads and forked processes may share an instance.
    """

    def __init__(
        self, path: str | Path, split: str, check_sizes: bool = True, check_reads: bool = True
    ) -> None:
        """Open a dataset directory.

        check_sizes: whether every shard must be there and have its exact size. check_reads: whether
        every token that is read is compared with the checksums of the shard; without it `esolm prep
        verify` alone does so. Raises DataError when the manifest is missing or damaged, when a
        shard is not as it must be, or when the split holds no tokens.
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
        if check_sizes and (problems := shard_problems(self.path, shards)):
            raise DataError("\n".join([*problems, repair_advice(self.path)]))
        self.shards = shards
        self.fingerprint = manifest.fingerprint
        self.former_fingerprint = manifest.former_fingerprint
        self.vocab_size = manifest.tokenizer.vocab_size
        self.mask_id = manifest.tokenizer.mask_id
        self.bos_id = manifest.tokenizer.bos_id
        self.eos_id = manifest.tokenizer.eos_id
        self.tokenizer_fingerprint = manifest.tokenizer.fingerprint
        self.tokenizer_directory = self.path / TOKENIZER_DIRECTORY
        self._dtype = np.dtype(manifest.dtype)
        self._manifest = manifest
        self._files = ShardFiles(self.path, shards, check_reads)
        self._lay_out(shards)

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the tokens were made with; raise DataError if it is another."""
        return checked_tokenizer(self.path, self._manifest)

    def _lay_out(self, shards: list[ShardInfo]) -> None:
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

        Raises DataError when a shard is shorter than it was when the dataset was opened, when its
        tokens are not those that were written, or one is not of the vocabulary.
        """
        if (starts < 0).any() or (starts + length > self.num_tokens).any():
            raise IndexError(f"tokens outside [0, {self.num_tokens}) of {self.path} were asked for")
        rows = np.empty((len(starts), length), dtype=self._dtype)
        for row, start, place in zip(rows, starts, self._locate(starts), strict=True):
            if place[3] >= length:
                self._files.read(place, row)
            else:
                self._read_pieces(int(start), row)
        if rows.size and int(rows.max()) >= self.vocab_size:
            raise self._foreign_token(starts, rows)
        return rows.astype(np.int64)

    def _foreign_token(self, starts: Int64Array, rows: npt.NDArray[np.generic]) -> DataError:
        """The error that names the first token that is not of the vocabulary, and its place."""
        row, column = np.argwhere(rows >= self.vocab_size)[0]  # type: ignore[operator]
        position = int(starts[row]) + int(column)
        [(shard, offset, within, _)] = self._locate(np.array([position], dtype=np.int64))
        return DataError(
            f"{self._files.path(shard)}, member {within // MEMBER_TOKENS}, byte {offset}: token "
            f"{int(rows[row, column])} is not of the vocabulary of {self.vocab_size} tokens: the "
            f"shard is damaged. {repair_advice(self.path)}"
        )

    def _locate(self, positions: Int64Array) -> list[Place]:
        """Return the place of each position of the stream."""
        shards = np.searchsorted(self._shard_starts, positions, side="right") - 1
        in_shard = positions - self._shard_starts[shards]
        members, within = np.divmod(in_shard, MEMBER_TOKENS)
        offsets = self._member_offsets[shards] + members * self._member_strides[shards]
        available = np.minimum(MEMBER_TOKENS - within, self._shard_starts[shards + 1] - positions)
        columns = (shards, offsets + within * self._dtype.itemsize, in_shard, available)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _read_pieces(self, start: int, row: npt.NDArray[np.generic]) -> None:
        """Fill a row that runs over the end of a member or shard."""
        filled = 0
        while filled < len(row):
            [place] = self._locate(np.array([start + filled], dtype=np.int64))
            size = min(place[3], len(row) - filled)
            self._files.read(place, row[filled : filled + size])
            filled += size
