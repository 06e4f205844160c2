"""Floating-point operations of training, counted from the architecture.

A multiply-add is two operations; the backward pass costs twice the forward. Counted are the matrix
products of the blocks, the attention scores that the pattern makes visible, and the output layer at
positions that carry loss. Norms, activations and the embedding look-up are not.
"""

from model.attention import AttentionPattern
from model.config import ModelConfig


def visible_pairs(pattern: AttentionPattern, length: int, block_size: int = 1) -> int:
    """(query, key) pairs of one row that attend, for L = length and an empty prefix."""
    triangle = length * (length + 1) // 2
    if pattern is AttentionPattern.BIDIRECTIONAL:
        return length * length
    if pattern in (AttentionPattern.CAUSAL, AttentionPattern.PREFIX):
        return triangle
    if pattern is AttentionPattern.BLOCK_TWO_STREAM:
        blocks = length // block_size
        area = block_size * block_size
        return area * (blocks + blocks * (blocks - 1) // 2 + blocks * (blocks + 1) // 2)
    return length + (triangle - length) + triangle


def row_flops(config: ModelConfig, pattern: AttentionPattern, length: int, scored: float) -> float:
    """Forward and backward of one row of L = length tokens.

    scored: mean number of positions that go through the output layer.
    """
    width, tokens = config.hidden_size, length * pattern.num_streams
    matrices = 3 if config.activation == "swiglu" else 2
    per_token = 4 * width * width + matrices * width * config.ffn_hidden_size
    attention = 2 * width * visible_pairs(pattern, length)
    blocks = config.num_layers * (tokens * per_token + attention)
    return 6.0 * (blocks + scored * width * config.vocab_size)
