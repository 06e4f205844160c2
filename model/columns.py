"""The integers that travel with each row of a micro-batch, between layers and between stages."""

from enum import IntEnum


class Column(IntEnum):
    """Columns of `rows`, int64 [B, 4], as `NetworkInput.rows` makes it."""

    PATTERN = 0
    """`AttentionPattern.index`; the same in every row of a micro-batch."""
    BLOCK_SIZE = 1
    """Of block_two_stream, else 1; the same in every row."""
    PREFIX_LENGTH = 2
    """Number of clean tokens in front (prefix patterns), else 0."""
    DROPOUT_KEY = 3
