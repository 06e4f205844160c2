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
NUM_ROUNDS = 8
_WORD = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN_RATIO = 0x9E37_79B9_7F4A_7C15


def _mix(x: Uint64Array) -> Uint64Array:
    """Return the splitmix64 finaliser of each element: a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _epoch_keys(seed: int, epochs: Uint64Array) -> Uint64Array:
    """Return one 64-bit key per epoch [N] from the run's seed (taken modulo 2**64)."""
    seed_word = np.array([(seed + _GOLDEN_RATIO) & _WORD], dtype=np.uint64)
    return _mix(_mix(seed_word) + (epochs + np.uint64(1)) * np.uint64(_GOLDEN_RATIO))


def _feistel(x: Uint64Array, keys: Uint64Array, rows: int, columns: int) -> Uint64Array:
    """Return a permutation of [0, rows * columns) at each x [N], under each element's key [N]."""
    num_rows, num_columns = np.uint64(rows), np.uint64(columns)
    row, column = x // num_columns, x % num_columns
    for number in range(NUM_ROUNDS):
        round_keys = keys + np.uint64((number + 1) * _GOLDEN_RATIO & _WORD)
        if number % 2 == 0:
            row = (row + _mix(column ^ _mix(round_keys)) % num_rows) % num_rows
        else:
            column = (column + _mix(row ^ _mix(round_keys)) % num_columns) % num_columns
    return row * num_columns + column


def permute(x: Int64Array, size: int, seed: int, epochs: Int64Array) -> Int64Array:
    """Return the keyed permutation of [0, size) of each epoch, at each x [N] below size."""
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = _epoch_keys(seed, epochs.astype(np.uint64))
    result = _feistel(x.astype(np.uint64), keys, rows, columns)
    outside = np.flatnonzero(result >= np.uint64(size))
    while len(outside):
        result[outside] = _feistel(result[outside], keys[outside], rows, columns)
        outside = outside[result[outside] >= np.uint64(size)]
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
