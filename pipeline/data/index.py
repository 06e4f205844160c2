"""The order of samples as a pure function of a counter: no state, no memory, any position at once.

Global sample i of a run lies in epoch i // N of N sequences; its sequence is a keyed permutation of
i % N, another one in each epoch. The permutation is a Feistel network over the grid of residues
(a, b) with a * b >= N, and results outside [0, N) are permuted again until they fall inside (cycle
walking), which keeps it a bijection (Black and Rogaway, "Ciphers with arbitrary finite domains",
2002). With a and b near sqrt(N) hardly any result falls outside.

The functions here fix the data order of every run ever started: they must not change.
"""

import math

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError

Int64Array = npt.NDArray[np.int64]
Uint64Array = npt.NDArray[np.uint64]

SHUFFLES = ("global", "none")
CONTINUOUS, WRAPPED, BEST_FIT = PACKINGS = ("continuous", "wrapped", "best_fit")
"""What a sequence is made of; see `esolm.pipeline.data.reader`."""
NUM_ROUNDS = 8
_WORD = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN_RATIO = 0x9E37_79B9_7F4A_7C15
_ROUNDS = np.array(
    [[(number + 1) * _GOLDEN_RATIO & _WORD] for number in range(NUM_ROUNDS)], dtype=np.uint64
)


def _mix(x: Uint64Array) -> Uint64Array:
    """Return the splitmix64 finaliser of each element: a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _epoch_keys(seed: int, epochs: Uint64Array) -> Uint64Array:
    """Return one 64-bit key per epoch [N] from the run's seed (taken modulo 2**64)."""
    seed_word = np.array([(seed + _GOLDEN_RATIO) & _WORD], dtype=np.uint64)
    return _mix(_mix(seed_word) + (epochs + np.uint64(1)) * np.uint64(_GOLDEN_RATIO))


def _feistel(
    x: Uint64Array,
    keys: Uint64Array,
    num_rows: Uint64Array | np.uint64,
    num_columns: Uint64Array | np.uint64,
) -> Uint64Array:
    """Return a permutation of [0, rows * columns) at each x [N], under each element's key [N]."""
    row, column = x // num_columns, x % num_columns
    for number, round_keys in enumerate(_mix(keys + _ROUNDS)):
        if number % 2 == 0:
            row = (row + _mix(column ^ round_keys) % num_rows) % num_rows
        else:
            column = (column + _mix(row ^ round_keys) % num_columns) % num_columns
    return row * num_columns + column


def grid_of(size: int) -> tuple[int, int]:
    """Return the rows and columns of the grid that the permutation of [0, size) walks on."""
    rows = math.isqrt(size - 1) + 1
    return rows, -(-size // rows)


def permute(x: Int64Array, size: int, seed: int, epochs: Int64Array) -> Int64Array:
    """Return the keyed permutation of [0, size) of each epoch, at each x [N] below size."""
    rows, columns = grid_of(size)
    keys = _epoch_keys(seed, epochs.astype(np.uint64))
    result = _feistel(x.astype(np.uint64), keys, np.uint64(rows), np.uint64(columns))
    outside = np.flatnonzero(result >= np.uint64(size))
    while len(outside):
        again = _feistel(result[outside], keys[outside], np.uint64(rows), np.uint64(columns))
        result[outside] = again
        outside = outside[again >= np.uint64(size)]
    return result.astype(np.int64)


def permute_each(
    x: Int64Array, sizes: Int64Array, which: Int64Array, seed: int, epochs: Int64Array
) -> Int64Array:
    """Return `permute` at each x [N] of the sizes [K] that `which` [N] names, in one pass."""
    grids = np.array([grid_of(size) for size in sizes.tolist()], dtype=np.uint64)
    rows, columns = grids[which].T
    limits, keys = sizes.astype(np.uint64)[which], _epoch_keys(seed, epochs.astype(np.uint64))
    result = _feistel(x.astype(np.uint64), keys, rows, columns)
    outside = np.flatnonzero(result >= limits)
    while len(outside):
        again = _feistel(result[outside], keys[outside], rows[outside], columns[outside])
        result[outside] = again
        outside = outside[again >= limits[outside]]
    return result.astype(np.int64)


class SampleIndex:
    """Where each global sample of a run lies: O(1) for any sample, any number of restarts."""

    def __init__(self, num_sequences: int, seed: int, shuffle: str = "global") -> None:
        """`shuffle` is "global" (a permutation of all sequences per epoch) or "none".

        Raises DataError for another shuffle, or when there is not a single sequence.
        """
        if shuffle not in SHUFFLES:
            raise DataError(f"shuffle is '{shuffle}', must be one of: {', '.join(SHUFFLES)}.")
        if num_sequences < 1:
            raise DataError(f"An index over {num_sequences} sequences has no samples.")
        self.num_sequences = num_sequences
        self.seed = seed
        self.shuffle = shuffle

    def locate(self, global_sample_indices: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return (epoch [N], sequence index [N]) of global samples [N], each at least 0."""
        indices = np.asarray(global_sample_indices, dtype=np.int64)
        assert indices.ndim == 1
        assert (indices >= 0).all()
        epochs, positions = np.divmod(indices, self.num_sequences)
        if self.shuffle == "global":
            positions = permute(positions, self.num_sequences, self.seed, epochs)
        return epochs, positions
