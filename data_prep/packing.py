"""Rows of equal length made of whole documents: best-fit decreasing, and no padding at all.

After "Fewer Truncations Improve Language Modeling" (Ding et al., 2024). Of every document the
tokens that fill rows by themselves are such rows; what is left of it is a piece. The pieces, the
longest first, each go to the row with the least room that takes them. A row may then have a gap.
Whole rows are wanted, as many as the tokens make; so the emptiest are taken apart, and their pieces
are poured into the gaps of the others, one after the other, and cut where a gap ends. So a row has
one piece at most that does not end with the end of its document, and it is the last of its row.
Less than a row of every shard is left over.

The functions here fix the rows of every run ever started: they must not change.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PackedShard:
    """The rows of a shard, in the order of the places that they begin with.

    firsts: [R + 1], the first piece of every row, and the number of pieces. starts, sizes: [P],
    where each piece begins in the shard, and its tokens, one row after the other. num_cut: how many
    documents are not in one piece, though not all of them is left over.
    """

    firsts: Int64Array
    starts: Int64Array
    sizes: Int64Array
    num_cut: int

    @property
    def num_rows(self) -> int:
        return len(self.firsts) - 1


def pack(ends: Int64Array, length: int) -> PackedShard:
    """Return the rows of `length` tokens of a shard whose documents end at `ends` [D].

    No more of them end within a document than if the shard were cut as it is.
    """
    starts = np.concatenate([[0], ends[:-1]])
    whole = (ends - starts) // length
    owner = np.repeat(np.arange(len(ends)), whole)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(whole) - whole, whole)
    of_rows, row_starts = np.arange(len(owner)), starts[owner] + number * length
    row_sizes = np.full(len(owner), length)

    rest = np.flatnonzero(ends - starts > whole * length)
    rests = (starts + whole * length)[rest]
    bins, bin_starts, bin_sizes = _pack_pieces(rests, ends[rest] - rests, length)
    packed = _in_order(
        np.concatenate([of_rows, len(owner) + bins]),
        np.concatenate([row_starts, bin_starts]),
        np.concatenate([row_sizes, bin_sizes]),
        ends,
    )
    last = packed.firsts[1:] - 1
    num_open = _num_within(packed.starts[last] + packed.sizes[last], ends)
    row_ends = length * np.arange(1, ends[-1] // length + 1)
    if num_open <= _num_within(row_ends, ends):
        return packed
    as_it_is = _poured(starts, ends - starts, np.full(len(row_ends), length))
    return _in_order(*as_it_is, ends)


def _pack_pieces(
    starts: Int64Array, sizes: Int64Array, length: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return (row, start, size), each [P], of pieces [N] shorter than a row made into whole rows.

    Within a row the pieces come in the order in which they stand in it.
    """
    bins = best_fit(sizes, length)
    used = np.bincount(bins, weights=sizes).astype(np.int64)
    num_rows = int(sizes.sum()) // length
    order = np.argsort(-used, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    rows = rank[bins] if len(bins) else bins
    kept = rows < num_rows
    gaps = length - used[order[:num_rows]]
    into, fill_starts, fill_sizes = _poured(starts[~kept], sizes[~kept], gaps)
    return (
        np.concatenate([rows[kept], into]),
        np.concatenate([starts[kept], fill_starts]),
        np.concatenate([sizes[kept], fill_sizes]),
    )


def best_fit(sizes: Int64Array, length: int) -> Int64Array:
    """Return the row [N] that each piece goes to, the longest first: that with the least room.

    Of several the one that came to have that room last; a new one where no row has the room.
    """
    bins = np.empty(len(sizes), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = num_bins = 0  # rooms: bit n is set if a row has room for n tokens
    order = np.argsort(-sizes, kind="stable")
    for piece, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = length, num_bins
            num_bins += 1
        bins[piece] = chosen
        left = room - size
        with_room[left].append(chosen)
        rooms |= 1 << left
    return bins


def _poured(
    starts: Int64Array, sizes: Int64Array, gaps: Int64Array
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return (gap, start, size), each [P], of pieces [N] poured end to end into gaps [G].

    The pieces have as many tokens as the gaps, or more: what does not go in is left out.
    """
    gap_ends, piece_ends = np.cumsum(gaps), np.cumsum(sizes)
    total = int(gap_ends[-1]) if len(gaps) else 0
    cuts = np.union1d(gap_ends[gaps > 0], piece_ends)
    cuts = cuts[cuts <= total]
    begins = np.concatenate([[0], cuts[:-1]])[: len(cuts)].astype(np.int64)
    piece = np.searchsorted(piece_ends, begins, side="right")
    places = starts[piece] + begins - (piece_ends - sizes)[piece]
    return np.searchsorted(gap_ends, begins, side="right"), places, cuts - begins


def _in_order(
    rows: Int64Array, starts: Int64Array, sizes: Int64Array, ends: Int64Array
) -> PackedShard:
    """Return whole rows, of pieces [P] whose order within a row stays."""
    by_row = np.argsort(rows, kind="stable")
    rows, starts, sizes = rows[by_row], starts[by_row], sizes[by_row]
    _, firsts, counts = np.unique(rows, return_index=True, return_counts=True)
    # What is read first of a split is then no better filled than the rest of it.
    order = np.argsort(starts[firsts], kind="stable")
    firsts, counts = firsts[order], counts[order]
    new_firsts = np.concatenate([[0], np.cumsum(counts)])
    pieces = np.repeat(firsts - new_firsts[:-1], counts) + np.arange(len(rows))
    starts, sizes = starts[pieces], sizes[pieces]
    document = np.searchsorted(ends, starts, side="right")
    whole = sizes == np.diff(ends, prepend=0)[document]
    num_cut = len(np.unique(document)) - int(whole.sum())
    return PackedShard(new_firsts.astype(np.int64), starts, sizes, num_cut)


def _num_within(places: Int64Array, ends: Int64Array) -> int:
    """Return how many of some places [N], none behind the last end, are no end of a document."""
    return int((ends[np.searchsorted(ends, places)] != places).sum())
