"""The integers that travel with each row of a micro-batch, between layers and between stages."""

from enum import IntEnum

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Column(IntEnum):
    """Columns of `rows`, int64 [B, 6], as `NetworkInput.rows` makes it."""

    PATTERN = 0
    """`AttentionPattern.index`; the same in every row of a micro-batch."""
    BLOCK_SIZE = 1
    """The block size of block_two_stream, and 1 in other patterns; the same in every row."""
    PREFIX_LENGTH = 2
    """The number of clean tokens in front in prefix patterns, and 0 in others."""
    DROPOUT_KEY = 3
    SKIPPED = 4
    """The tokens that the noised stream lacks in front; the same in every row. See `inputs`."""
    SEPARATE = 5
    """Whether tokens see only those of their own document, 0 or 1; the same in every row."""


_first_rows = WeakTensorKeyDictionary()


def note_first_row(rows: Tensor, first: list[int]) -> None:
    """Notes the first of some rows, which the host knows, so that nothing waits for a device."""
    _first_rows[rows] = first


def first_row(rows: Tensor) -> list[int]:
    """Returns the first of some rows; where it was not noted, the host waits for the device."""
    if rows not in _first_rows:
        note_first_row(rows, rows[0].tolist())
    noted: list[int] = _first_rows[rows]
    return noted
