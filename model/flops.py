"""Floating-point operations of training, counted from the architecture.

A multiply-add is two operations, and the backward pass costs twice as much as the forward pass. The
count has the matrix products of the blocks, the attention scores that the pattern makes visible,
and the output layer at positions that carry loss. It leaves out norms, activations, the embedding
look-up, and what the last block does not compute of a second stream.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from esolm.model.attention import AttentionPattern
from esolm.model.config import ModelConfig


@dataclass(frozen=True)
class RowWork:
    """The work that one kind of row in a global batch makes, as a mean over its random draws.

    share: the share of this kind among the rows. length: L, the tokens of one stream. scored: the
    number of positions that go through the output layer. prefix_pairs: P (P - 1) / 2, the pairs of
    tokens within the prefix of prefix patterns. skipped: the tokens in front of the noised stream
    that carry no loss, which are not fed; see `esolm.model.inputs.without_idle`.
    """

    share: float
    pattern: AttentionPattern
    length: int
    scored: float
    block_size: int = 1
    prefix_pairs: float = 0.0
    skipped: float = 0.0

    @property
    def outputs(self) -> float:
        """The tokens of the first stream."""
        return self.length - self.skipped

    @property
    def fed(self) -> float:
        """The tokens of all streams."""
        return self.outputs + (self.pattern.num_streams - 1) * self.length


def visible_pairs(work: RowWork) -> tuple[float, float]:
    """Counts the (query, key) pairs of a row that attend: for all queries, and for stream 1."""
    length, pattern = work.length, work.pattern
    if pattern is AttentionPattern.BIDIRECTIONAL:
        return length * length, length * length
    triangle = length * (length + 1) // 2
    prefix = work.prefix_pairs if "prefix" in pattern.value else 0.0
    if pattern.num_streams == 1:
        return triangle + prefix, triangle + prefix
    blocks = length // work.block_size
    area, below = work.block_size**2, blocks * (blocks - 1) // 2
    clean = area * (below + blocks)
    noised = clean - work.skipped * (work.skipped + 1) / 2
    return noised + clean + prefix, noised


def layer_flops(config: ModelConfig, work: RowWork) -> list[float]:
    """The FLOPs of each layer for one row, forward and backward: embedding, blocks, head."""
    width = config.hidden_size
    matrices = 3 if config.activation == "swiglu" else 2
    keys_values = 2 * width * config.kv_size
    others = 2 * width * width + matrices * width * config.ffn_hidden_size
    all_pairs, output_pairs = visible_pairs(work)
    block = work.fed * (keys_values + others) + 2 * width * all_pairs
    last = work.fed * keys_values + work.outputs * others + 2 * width * output_pairs
    head = work.scored * width * config.vocab_size
    return [0.0, *[6.0 * block] * (config.num_layers - 1), 6.0 * last, 6.0 * head]


def layer_costs(config: ModelConfig, works: Iterable[RowWork]) -> list[float]:
    """The FLOPs of each layer for a mean row: the kinds of rows are weighted by their shares."""
    rows = [[work.share * cost for cost in layer_flops(config, work)] for work in works]
    return [sum(costs) for costs in zip(*rows, strict=True)]


def flops_per_token(config: ModelConfig, works: Iterable[RowWork], seq_len: int) -> float:
    """The FLOPs per token of the data (not per token fed), as a mean over the kinds of rows."""
    return sum(layer_costs(config, works)) / seq_len
