"""Shards end to end as one stream of tokens, of one dataset or of several in turn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import MEMBER_TOKENS, ShardInfo
from esolm.pipeline.data.checked_tokens import CheckedTokens, TokenArray

Int64Array = npt.NDArray[np.int64]

BLOCK_PIECES = 512
"""The pieces of rows that are read and checked at a time."""


class TokenStream:
    """The tokens of shards, read at any position.

    Reading is by pread, so threads and forked processes may share an instance.
    """

    def __init__(
        self, shards: Sequence[tuple[Path, ShardInfo]], dtype: str, vocab_size: int, checked: bool
    ) -> None:
        """shards: each with the folder of its dataset. checked: as for `CheckedTokens`."""
        self._tokens = CheckedTokens(shards, dtype, checked)
        self._vocab_size = vocab_size
        ends = np.cumsum([shard.num_tokens for _, shard in shards], dtype=np.int64)
        self._starts = np.concatenate([[0], ends])

    def read_many(self, starts: Int64Array, length: int) -> Int64Array:
        """Return tokens [N, length] of the stream from each start [N], all of it within the stream.

        Raises DataError for tokens that are not what was written or not of the vocabulary, and for
        a shard that is shorter than it was.
        """
        rows = np.empty((len(starts), length), dtype=np.int64)
        self.read_into(rows, np.arange(len(starts)) * length, starts, np.full(len(starts), length))
        return rows

    def read_into(
        self, rows: Int64Array, places: Int64Array, starts: Int64Array, sizes: Int64Array
    ) -> None:
        """Fill rows [N, L] with pieces [P] of the stream, sizes tokens from each of the starts on.

        places: where each begins in the rows end to end; none crosses the end of a row. Raises as
        `read_many` does.
        """
        for first in range(0, len(starts), BLOCK_PIECES):
            block = slice(first, first + BLOCK_PIECES)
            self._read_block(rows, places[block], starts[block], sizes[block])

    def _read_block(
        self, rows: Int64Array, into: Int64Array, start: Int64Array, left: Int64Array
    ) -> None:
        """Do what `read_into` does, for so many pieces that memory holds them as they lie."""
        length = rows.shape[1]
        # What lies on both sides of the end of a member is read in parts.
        parts = []
        while len(start):
            shards, members, within, ends = self._locate(start)
            sizes = np.minimum(left, ends - within)
            parts.append((into, start, shards, members, within, sizes, ends))
            more = np.flatnonzero(left > sizes)
            into, start, left = (into + sizes)[more], (start + sizes)[more], (left - sizes)[more]
        into, start, shards, members, within, sizes, ends = map(
            np.concatenate, zip(*parts, strict=True)
        )
        raw, shifts = self._tokens.read(shards, members, within, sizes, ends)
        whole = np.flatnonzero(sizes == length)
        if len(whole):
            columns = np.lib.stride_tricks.sliding_window_view(raw, length, axis=1)
            tokens = columns[whole, shifts[whole]]
            self._refuse_foreign(tokens, start[whole])
            rows[into[whole] // length] = tokens
        other = np.flatnonzero(sizes != length)
        if not len(other):
            return
        cut = zip(other.tolist(), shifts[other].tolist(), sizes[other].tolist(), strict=True)
        views = [raw[number, shift : shift + size] for number, shift, size in cut]
        if int(np.concatenate(views).max()) >= self._vocab_size:
            for view, begin in zip(views, start[other], strict=True):
                self._refuse_foreign(view[None], begin[None])
        flat = rows.reshape(-1)
        for view, place in zip(views, into[other].tolist(), strict=True):
            flat[place : place + len(view)] = view

    def _locate(self, starts: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
        """Return (shard, member, place in it, tokens of the member), each [N], of positions [N]."""
        shards = np.searchsorted(self._starts, starts, side="right") - 1
        members, within = np.divmod(starts - self._starts[shards], MEMBER_TOKENS)
        sizes = self._starts[shards + 1] - self._starts[shards]
        return shards, members, within, np.minimum(MEMBER_TOKENS, sizes - members * MEMBER_TOKENS)

    def _refuse_foreign(self, tokens: TokenArray, starts: Int64Array) -> None:
        """Raise DataError for the first token [N, L] not of the vocabulary. starts [N]: of rows."""
        if not tokens.size or int(tokens.max()) < self._vocab_size:
            return
        row, column = np.argwhere(tokens >= self._vocab_size)[0]
        shards, members, within, _ = self._locate(starts[row : row + 1] + column)
        shard, member = int(shards[0]), int(members[0])
        place = f"member {member}, byte {self._tokens.offset(shard, member, int(within[0]))}"
        raise DataError(
            f"{self._tokens.paths[shard]}, {place}: token {tokens[row, column]} is not of the "
            f"vocabulary of {self._vocab_size} tokens: the shard is damaged. "
            f"{self._tokens.advice(shard)}"
        )
