"""The integers that travel with each row of a micro-batch, between layers and between stages."""

from enum import IntEnum


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
