"""Floating-point operations of training, counted from the architecture.

A multiply-add is two operations; the backward pass costs twice the forward. Counted are the matrix
products of the blocks, the attention scores that the pattern makes visible, and the output layer at
positions that carry loss. Norms, activations and the embedding look-up are not, and neither is what
the last block leaves out of a second stream.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from model.attention import AttentionPattern
from model.config import ModelConfig


@dataclass(frozen=True)
class RowWork:
    """One kind of row in a global batch, by means over its random draws.

    share: of the rows. length: L, tokens of one stream. scored: positions that go through the
    output layer. prefix_pairs: P (P - 1) / 2, pairs of tokens in the prefix of prefix patterns.
    """

    share: float
    pattern: AttentionPattern
    length: int
    scored: float
    block_size: int = 1
    prefix_pairs: float = 0.0


def visible_pairs(work: RowWork) -> tuple[float, float]:
    """(query, key) pairs of one row that attend: over all queries, and over the first stream's."""
    length, pattern = work.length, work.pattern
    if pattern is AttentionPattern.BIDIRECTIONAL:
        return length * length, length * length
    triangle = length * (length + 1) // 2
    prefix = work.prefix_pairs if "prefix" in pattern.value else 0.0
    if pattern.num_streams == 1:
        return triangle + prefix, triangle + prefix
    blocks = length // work.block_size
    area, below = work.block_size**2, blocks * (blocks - 1) // 2
    noised, clean = area * (blocks + below), area * (below + blocks)
    return noised + clean + prefix, noised


def layer_flops(config: ModelConfig, work: RowWork) -> list[float]:
    """Forward and backward of one row, by layer: the embedding, every block, the head."""
    width, streams = config.hidden_size, work.pattern.num_streams
    matrices = 3 if config.activation == "swiglu" else 2
    keys_values = 2 * width * width
    others = 2 * width * width + matrices * width * config.ffn_hidden_size
    all_pairs, output_pairs = visible_pairs(work)
    block = streams * work.length * (keys_values + others) + 2 * width * all_pairs
    last = work.length * (streams * keys_values + others) + 2 * width * output_pairs
    head = work.scored * width * config.vocab_size
    return [0.0, *[6.0 * block] * (config.num_layers - 1), 6.0 * last, 6.0 * head]


def layer_costs(config: ModelConfig, works: Iterable[RowWork]) -> list[float]:
    """FLOPs of each layer for a mean row, as the kinds of rows share a global batch."""
    rows = [[work.share * cost for cost in layer_flops(config, work)] for work in works]
    return [sum(costs) for costs in zip(*rows, strict=True)]


def flops_per_token(config: ModelConfig, works: Iterable[RowWork], seq_len: int) -> float:
    """Of a token of the data (not per token fed), as the kinds of rows share a global batch."""
    return sum(layer_costs(config, works)) / seq_len
