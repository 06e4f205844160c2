"""Attention patterns: one rule per pattern, from which every mask and kernel choice follows.

A rule says whether query i may see key j. P is the prefix length of the row. In two-stream patterns
the 2L tokens are the noised stream z followed by the clean stream x, and i, j count within a
stream. Where z lacks its first tokens (`esolm.model.inputs.without_idle`), the others keep their i.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.columns import Column, first_row
from esolm.model.documents import document_of, place_of
from esolm.model.kernels import kernels_in_use
from esolm.model.two_streams import attend_noised


class AttentionPattern(enum.Enum):
    """The patterns that say which token sees which; `visible` holds the rule of each."""

    BIDIRECTIONAL = "bidirectional"
    CAUSAL = "causal"
    PREFIX = "prefix"
    TWO_STREAM = "two_stream"
    TWO_STREAM_PREFIX = "two_stream_prefix"
    BLOCK_TWO_STREAM = "block_two_stream"

    @property
    def index(self) -> int:
        """The number that stands for the pattern in `rows`."""
        return list(AttentionPattern).index(self)

    @classmethod
    def at(cls, index: int) -> "AttentionPattern":
        """The pattern that has this index."""
        return list(cls)[index]

    @property
    def num_streams(self) -> int:
        return 2 if "two_stream" in self.value else 1

    @property
    def noised_are_apart(self) -> bool:
        """Whether a noised token of two streams is seen by no other token."""
        return self in (AttentionPattern.TWO_STREAM, AttentionPattern.TWO_STREAM_PREFIX)

    @property
    def has_prefix(self) -> bool:
        """Whether the mask differs from row to row, because it depends on the row's prefix."""
        return self in (AttentionPattern.PREFIX, AttentionPattern.TWO_STREAM_PREFIX)


def visible(
    pattern: AttentionPattern, q: Tensor, k: Tensor, length: int, prefix: Tensor, block_size: int
) -> Tensor:
    """Says where query index q may see key index k (integer tensors that broadcast), as a bool.

    length: L, the tokens of one stream. prefix: P of the row. block_size: the tokens of a block,
    which only block_two_stream reads.
    Source: Eso-LM sections 3-4 (arXiv 2506.01928); BD3-LM for the block pattern.
    """
    if pattern is AttentionPattern.BIDIRECTIONAL:
        return (q >= 0) & (k >= 0)
    if pattern is AttentionPattern.CAUSAL:
        return k <= q
    if pattern is AttentionPattern.PREFIX:
        return (k <= q) | ((q < prefix) & (k < prefix))
    q_clean, k_clean = q >= length, k >= length
    i, j = q % length, k % length
    if pattern is AttentionPattern.BLOCK_TWO_STREAM:
        i, j = i // block_size, j // block_size
    z_sees_z = ~q_clean & ~k_clean & (i == j)
    z_sees_x = ~q_clean & k_clean & (j < i)
    x_sees_x = q_clean & k_clean & (j <= i)
    seen = z_sees_z | z_sees_x | x_sees_x
    if pattern is AttentionPattern.TWO_STREAM_PREFIX:
        seen = seen | (q_clean & k_clean & (i < prefix) & (j < prefix))
    return seen


def stream_lengths(pattern: AttentionPattern, seq_len: int, skipped: int) -> tuple[int, ...]:
    """Returns the tokens of each stream of a row of seq_len tokens.

    skipped: the tokens that the noised stream lacks.
    """
    if pattern.num_streams == 1:
        return (seq_len,)
    length = (seq_len + skipped) // 2
    return length - skipped, length


@dataclass(frozen=True)
class AttentionMask:
    """A pattern made ready for one micro-batch on one device."""

    pattern: AttentionPattern
    num_queries: int
    """Q: only the first Q of the S tokens are queries; all S are keys."""
    dense: Tensor | None = None
    """Bool [B, 1, Q, S], True where a key is visible; None if a plain kernel or `block` serves."""
    block: Any = None
    """A FlexAttention BlockMask; only made on CUDA."""
    skipped: int = 0
    """The tokens that the noised stream lacks in front."""
    clean: "AttentionMask | None" = None
    """Of two streams that `esolm.model.two_streams` serves, the mask of the clean one alone."""
    streams: tuple[int, ...] = ()
    """`stream_lengths` of the S tokens, which only context parallelism reads."""


def dense_mask(
    pattern: AttentionPattern,
    seq_len: int,
    prefix_length: Tensor,
    block_size: int = 1,
    num_queries: int | None = None,
    skipped: int = 0,
    positions: Tensor | None = None,
) -> Tensor:
    """Returns the pattern as a bool mask [B, 1, Q, S], True where a key is visible.

    seq_len: S, the tokens fed to the network. num_queries: Q, how many of them, counted from the
    front, are queries; by default all are. skipped: the tokens that the noised stream lacks.
    positions: [B, S], of rows that keep their documents apart; see `esolm.model.documents`.
    """
    index = torch.arange(skipped, skipped + seq_len, device=prefix_length.device)[None]
    if positions is not None:
        index = _index_of(pattern, positions, skipped)
    seen = visible(
        pattern,
        index[:, :num_queries, None],
        index[:, None, :],
        stream_lengths(pattern, seq_len, skipped)[-1],
        prefix_length[:, None, None],
        block_size,
    )
    if positions is not None:
        documents = document_of(positions)
        seen = seen & (documents[:, :num_queries, None] == documents[:, None, :])
    return seen.expand(prefix_length.shape[0], -1, -1)[:, None]


def _index_of(pattern: AttentionPattern, positions: Tensor, skipped: int) -> Tensor:
    """Returns what the pattern counts, [B, S], where documents are apart.

    That is the number in which a token is fed, or for blocks, which begin with each document, its
    place there.
    """
    size = positions.shape[1]
    index = torch.arange(skipped, skipped + size, device=positions.device).expand_as(positions)
    if pattern is not AttentionPattern.BLOCK_TWO_STREAM:
        return index
    _, length = stream_lengths(pattern, size, skipped)
    return place_of(positions) + index // length * length


def flex_mask(
    pattern: AttentionPattern,
    seq_len: int,
    prefix_length: Tensor,
    block_size: int = 1,
    num_queries: int | None = None,
    skipped: int = 0,
    positions: Tensor | None = None,
) -> Any:
    """Returns the mask of `dense_mask` as a FlexAttention BlockMask, right for every row."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = stream_lengths(pattern, seq_len, skipped)[-1]

    apart = None
    if positions is not None:
        apart = (_index_of(pattern, positions, skipped), document_of(positions))

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if apart is None:
            i, j = q + skipped, k + skipped
            return visible(pattern, i, j, length, prefix_length[b], block_size)
        index, documents = apart
        i, j = index[b, q], index[b, k]
        seen = visible(pattern, i, j, length, prefix_length[b], block_size)
        return seen & (documents[b, q] == documents[b, k])

    differs = pattern.has_prefix or positions is not None
    batch = prefix_length.shape[0] if differs else None
    queries = seq_len if num_queries is None else num_queries
    return create_block_mask(mask_mod, batch, None, queries, seq_len, device=prefix_length.device)


class MaskBuilder:
    """Makes the masks of a micro-batch once per stage, not once per layer.

    The layers of a stage share one builder. Reading the pattern's id from the device is a
    synchronisation, so it is read only when another `rows` tensor comes in that nobody has noted.
    Masks that depend on shapes alone are kept beyond the micro-batch.
    """

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._pattern = AttentionPattern.CAUSAL
        self._block_size, self._skipped, self._separate = 1, 0, False
        self._of_these_rows: dict[tuple[int, int], AttentionMask] = {}
        self._of_shapes: dict[Any, AttentionMask] = {}

    def __call__(
        self,
        rows: Tensor,
        seq_len: int,
        outputs_only: bool = False,
        positions: Tensor | None = None,
    ) -> AttentionMask:
        """Returns the mask for rows, int64 [B, 6] as made by `NetworkInput.rows`.

        outputs_only: of two streams only the noised one has queries, because nothing reads the
        output of the clean one. positions: [B, S], read if the rows keep their documents apart.
        """
        if self._rows is not rows:
            first = first_row(rows)
            self._rows, self._block_size = rows, first[Column.BLOCK_SIZE]
            self._skipped = first[Column.SKIPPED]
            self._pattern = AttentionPattern.at(first[Column.PATTERN])
            self._separate = bool(first[Column.SEPARATE])
            self._of_these_rows.clear()
        streams = stream_lengths(self._pattern, seq_len, self._skipped)
        shape = (seq_len, streams[0] if outputs_only else seq_len)
        if self._pattern.has_prefix or self._separate:
            if shape not in self._of_these_rows:
                mask = self._build(rows, *shape, positions)
                self._of_these_rows[shape] = replace(mask, streams=streams)
            return self._of_these_rows[shape]
        batch, flexible = rows.shape[0], suits_flex(seq_len)
        of_batch = (self._pattern, self._block_size, self._skipped, batch)
        key = (*of_batch, *shape, rows.device, flexible)
        if key not in self._of_shapes:
            if len(self._of_shapes) >= MOST_MASKS:
                self._of_shapes.clear()
            mask = self._build(rows, *shape, positions)
            self._of_shapes[key] = replace(mask, streams=streams)
        return self._of_shapes[key]

    def _build(
        self, rows: Tensor, seq_len: int, num_queries: int, positions: Tensor | None
    ) -> AttentionMask:
        pattern, prefix = self._pattern, rows[:, Column.PREFIX_LENGTH]
        is_plain = pattern in (AttentionPattern.BIDIRECTIONAL, AttentionPattern.CAUSAL)
        if is_plain and not self._separate:
            return AttentionMask(pattern, num_queries)
        apart = positions if self._separate else None
        assert self._separate == (apart is not None), "the positions tell the documents"
        given = (pattern, seq_len, prefix, self._block_size, num_queries, self._skipped, apart)
        if kernels_in_use().flex_attention and prefix.is_cuda and suits_flex(seq_len):
            return AttentionMask(pattern, num_queries, block=flex_mask(*given))
        merged = kernels_in_use().two_streams and pattern.noised_are_apart and apart is None
        if merged and not prefix.is_cuda:
            return self._apart(prefix, seq_len, num_queries)
        return AttentionMask(pattern, num_queries, dense=dense_mask(*given))

    def _apart(self, prefix: Tensor, seq_len: int, num_queries: int) -> AttentionMask:
        _, length = stream_lengths(self._pattern, seq_len, self._skipped)
        clean = AttentionMask(AttentionPattern.CAUSAL, length)
        if self._pattern.has_prefix:
            dense = dense_mask(AttentionPattern.PREFIX, length, prefix)
            clean = AttentionMask(AttentionPattern.PREFIX, length, dense=dense)
        return AttentionMask(self._pattern, num_queries, skipped=self._skipped, clean=clean)


def suits_flex(seq_len: int) -> bool:
    """Whether a length is worth a kernel of its own, as FlexAttention is compiled for each length.

    Training has few lengths. Likelihoods under an order feed every length up to L; so without
    gradients, lengths that are not made of whole blocks of the kernel take the dense mask.
    """
    return torch.is_grad_enabled() or seq_len % FLEX_BLOCK == 0


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Returns softmax attention of q [B, H, Q, K] over k and v [B, G, S, K], shaped like q.

    Equal groups of neighbouring heads, H / G of them, share a head of keys and values.
    """
    grouped = q.shape[1] != k.shape[1]
    if mask.block is not None:
        out: Tensor = compiled_flex()(q, k, v, block_mask=mask.block, enable_gqa=grouped)
        return out
    if mask.clean is not None:
        return attend_apart(q, k, v, mask)
    is_causal = mask.pattern is AttentionPattern.CAUSAL and mask.dense is None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask.dense, is_causal=is_causal, enable_gqa=grouped
    )


def attend_apart(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Returns what `attend` does for two streams, of which no other token sees a noised one."""
    assert mask.clean is not None
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    noised, length = stream_lengths(mask.pattern, k.shape[2], mask.skipped)
    (noised_k, clean_k), (noised_v, clean_v) = (
        torch.split(x, [noised, length], dim=2) for x in (k, v)
    )
    noised_q, clean_q = torch.split(q, [noised, q.shape[2] - noised], dim=2)
    out = attend_noised(noised_q, (noised_k, noised_v), (clean_k, clean_v))
    if not clean_q.shape[2]:
        return out
    clean_out = attend(clean_q, clean_k, clean_v, mask.clean)
    # Both lie in memory token by token, and so does what the output projection reads.
    return torch.cat([out.transpose(1, 2), clean_out.transpose(1, 2)], dim=1).transpose(1, 2)


# How many masks a builder keeps: training has few shapes, but likelihoods under an order feed every
# length up to L, and each of them has a dense mask of up to 4 L^2 bytes.
MOST_MASKS = 8
FLEX_BLOCK = 128
# Patterns, numbers of queries, batch sizes, and gradients or none make more kernels than the 8 that
# torch allows. Beyond its limit torch only warns and takes the eager form, which builds the full
# score matrix.
MOST_KERNELS = 64


@cache
def compiled_flex(backend: str | Callable[..., Any] = "inductor") -> Any:
    """Returns the compiled flex_attention, which is made once per process."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = max(config.recompile_limit, MOST_KERNELS)
    return torch.compile(flex_attention, dynamic=False, backend=backend)
