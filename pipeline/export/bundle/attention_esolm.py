# mypy: ignore-errors
"""Who sees whom, and the keys and values that decoding keeps.

Shape letters: B rows, S tokens of a row, T tokens of a pass (all rows), H heads, K head dim,
G heads of keys and values, each of which H / G neighbouring heads share.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATTERNS = (
    "bidirectional",
    "causal",
    "prefix",
    "two_stream",
    "two_stream_prefix",
    "block_two_stream",
)
# What `block_two_stream` becomes when the noised stream is one block, the last: decoding needs it.
BLOCK_CAUSAL = "block_causal"
# Clean tokens, the last of which are guesses, then masks that check and prolong these guesses.
GUESSED = "guessed"
# A reach beyond every slot.
EVERYTHING = 2**31 - 1
# A mask has at most so many elements: more queries are answered in pieces, so that what a long text
# takes does not grow with the square of its length.
MASK_ELEMENTS = 1 << 22
# Masks of few tokens are kept, as they come again and again.
KEPT_ELEMENTS = 1 << 14
# Slots of a cache come in so many: kernels read masks in pieces of this size.
ALIGNMENT = 16


def reach(pattern: str, slot: Tensor, prefix: Tensor | int, block_size: int) -> Tensor:
    """int64: in a pattern of one stream a token sees the slots [0, reach) and its own.

    Integer tensors that broadcast. Under `guessed` the first `prefix` tokens are clean, the last
    `block_size` of them guesses; mask i behind them sees what is certain, and the first i guesses.
    """
    if pattern == "bidirectional":
        return torch.full_like(slot, EVERYTHING)
    if pattern == "causal":
        return slot + 1
    if pattern == "prefix":
        return torch.where(slot < prefix, prefix, slot + 1)
    if pattern == BLOCK_CAUSAL:
        return (slot // block_size + 1) * block_size
    seen_guesses = (slot - prefix).clamp(max=block_size)
    return torch.where(slot < prefix, slot + 1, prefix - block_size + seen_guesses)


def visible(
    pattern: str, q: Tensor, k: Tensor, length: int, prefix: Tensor | int, block_size: int
) -> Tensor:
    """Bool: query index q may see key index k (integer tensors that broadcast).

    In two-stream patterns the noised stream z comes first, the clean stream x second, each of
    `length` tokens; elsewhere `length` is not used. Source: arXiv 2506.01928, sections 3-4.
    """
    if "two_stream" not in pattern:
        return (k < reach(pattern, q, prefix, block_size)) | (k == q)
    q_clean, k_clean = q >= length, k >= length
    i, j = q % length, k % length
    both_in_prefix = (i < prefix) & (j < prefix)
    if pattern == "block_two_stream":
        i, j = i // block_size, j // block_size
    seen = (~q_clean & ~k_clean & (i == j)) | (~q_clean & k_clean & (j < i))
    seen = seen | (q_clean & k_clean & (j <= i))
    if pattern == "two_stream_prefix":
        seen = seen | (q_clean & k_clean & both_in_prefix)
    return seen


def dense_mask(
    pattern: str, seq_len: int, prefix_length: Tensor, block_size: int, index: Any = None
) -> Tensor:
    """The pattern as bool [B, 1, S, S]; prefix_length: int [B].

    index: int [B, S], what the pattern counts, if that is not the number in which a token is fed.
    """
    if index is None:
        index = torch.arange(seq_len, device=prefix_length.device)[None]
    q, k = index[:, None, :, None], index[:, None, None, :]
    prefix = prefix_length[:, None, None, None]
    seen = visible(pattern, q, k, max(seq_len // 2, 1), prefix, block_size)
    return seen.expand(len(prefix_length), 1, seq_len, seq_len)


class WholeRows:
    """Attention within rows of equal length, all of whose tokens are fed."""

    def __init__(self, mask: Tensor | None, is_causal: bool) -> None:
        self.mask, self.is_causal = mask, is_causal

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, _: bool = False) -> Tensor:
        """q: [B, S, H, K], as is returned; k, v: [B, S, G, K]."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask, is_causal=self.is_causal,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return out.transpose(1, 2)


class SlotCache:
    """Keys and values of `rows` texts of up to `slots` tokens each, allocated once.

    A pass writes the slots of what it feeds. Those of clean tokens stay; those of masks are
    overwritten by the next pass, which begins where the clean tokens end. The last slot of a row is
    spare: what fills up a pass goes there. A slot that nothing was written to holds zeros, as it
    may be read, with a weight of zero.
    """

    def __init__(
        self, config: Any, rows: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows, self.slots = rows, -(-(slots + 1) // ALIGNMENT) * ALIGNMENT
        shape = (rows, config.kv_heads, self.slots, config.head_dim)
        layers = torch.zeros(config.num_hidden_layers, 2, *shape, dtype=dtype, device=device)
        self.layers = layers.unbind(0)

    @property
    def spare(self) -> int:
        return self.slots - 1

    @property
    def num_bytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self.layers)


@dataclass(frozen=True)
class Sight:
    """How the tokens of a row see its slots: a pattern of one stream, and its numbers."""

    pattern: str
    prefix: int = 0
    block_size: int = 1

    def reach(self, start: int, width: int) -> np.ndarray:
        """int64 [width], of tokens in slots from `start` on; nothing lies behind the last one."""
        slots = torch.arange(start, start + width)
        found = reach(self.pattern, slots, self.prefix, self.block_size)
        return found.clamp(max=start + width).numpy()

    def mask(self, first: int, last: int, end: int, device: torch.device) -> Tensor | None:
        """Bool [last - first, end]: what tokens in slots [first, last) see; None: all see all."""
        if self.pattern == "bidirectional":
            return None
        make = _kept_mask if (last - first) * end <= KEPT_ELEMENTS else _mask
        return make(self, first, last, end, device)


def _mask(sight: Sight, first: int, last: int, end: int, device: torch.device) -> Tensor:
    index = torch.arange(end, device=device)
    return visible(sight.pattern, index[first:last, None], index, 1, sight.prefix, sight.block_size)


_kept_mask = lru_cache(maxsize=1024)(_mask)


@dataclass(frozen=True)
class Group:
    """Neighbouring rows that feed equally many tokens to the same slots and see them alike.

    row, count: the first row and how many. token: index of their first token in the pass. start,
    width: the slots that each feeds. wanted: how many of its last tokens give logits; None: others.
    """

    row: int
    count: int
    token: int
    start: int
    width: int
    sight: Sight
    wanted: int | None


class Asked:
    """The last tokens of a group as queries, and what each of them sees."""

    def __init__(self, group: Group, last: int, like: Tensor) -> None:
        """last: how many of each row's tokens ask. like: of the kind of keys and values."""
        self.group, self.last, self._like = group, last, like
        is_plain, all_ask = group.sight.pattern == "causal", last == group.width
        self._is_causal = is_plain and all_ask and not group.start
        self._sees_all = group.sight.pattern == "bidirectional" or (is_plain and last == 1)
        self._end = group.start + group.width
        self._at_once = max(1, MASK_ELEMENTS // self._end)
        self._mask = None
        if not self._is_causal and not self._sees_all and last <= self._at_once:
            self._mask = self._added(0, last)

    def answers(self, asks: Tensor, rows: Tensor, grouped: bool) -> Tensor:
        """asks: [count, H, last, K], as is returned; rows: keys and values [2, count, G, S, K]."""
        if self._is_causal or self._sees_all or self._mask is not None:
            return self._attend(asks, rows, grouped, self._mask)
        firsts = range(0, self.last, self._at_once)
        pieces = zip(firsts, asks.split(self._at_once, dim=2), strict=True)
        return torch.cat([
            self._attend(piece, rows, grouped, self._added(first, first + piece.shape[2]))
            for first, piece in pieces
        ], dim=2)  # fmt: skip

    def _attend(self, asks: Tensor, rows: Tensor, grouped: bool, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            asks, rows[0], rows[1], attn_mask=mask, is_causal=self._is_causal, enable_gqa=grouped
        )

    def _added(self, first: int, last: int) -> Tensor:
        """What to add to the scores of some of the queries.

        As numbers, as the kernel would make them of a bool mask in every layer.
        """
        front = self._end - self.last
        mask = self.group.sight.mask(front + first, front + last, self._end, self._like.device)
        added = torch.zeros(mask.shape, dtype=self._like.dtype, device=self._like.device)
        return added.masked_fill_(~mask, float("-inf"))


class CachedRows:
    """Attention of a ragged pass: every token sees the slots of its own row."""

    def __init__(self, cache: SlotCache, groups: list[Group]) -> None:
        self._cache = cache
        self._groups = [Asked(group, group.width, cache.layers[0]) for group in groups]
        self._of_wanted = [
            Asked(asked.group, asked.group.wanted, cache.layers[0])
            if (asked.group.wanted or asked.last) < asked.last
            else asked
            for asked in self._groups
        ]

    def __call__(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, only_wanted: bool = False
    ) -> Tensor:
        """q: [T, H, K], as is returned; k, v: [T, G, K].

        only_wanted: other tokens than these may stay zero.
        """
        layer_cache, out = self._cache.layers[layer], None
        grouped = q.shape[1] != k.shape[1]
        for asked in self._of_wanted if only_wanted else self._groups:
            group, last = asked.group, asked.last
            fed = slice(group.token, group.token + group.count * group.width)
            asks, keys, values = (
                x[fed].unflatten(0, (group.count, group.width)).transpose(1, 2) for x in (q, k, v)
            )
            end = group.start + group.width
            rows = layer_cache[:, group.row : group.row + group.count, :, :end]
            rows[0, :, :, group.start :] = keys
            rows[1, :, :, group.start :] = values
            answers = asked.answers(asks[:, :, -last:], rows, grouped).transpose(1, 2)
            if len(self._groups) == 1 and fed.stop == len(q) and last == group.width:
                return answers.flatten(0, 1)
            out = torch.zeros_like(q) if out is None else out
            out[fed].unflatten(0, (group.count, group.width))[:, -last:] = answers
        return out
