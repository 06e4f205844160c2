# mypy: ignore-errors
"""A ragged pass as a rectangle, for GPUs: few shapes, no loop over texts, nothing to wait for.

R rows feed W tokens each and see the first N slots; M tokens give logits. All four are rounded up,
so that passes of a long run have few shapes and each can be a CUDA graph. What fills a pass up goes
to the spare slot of its row, sees the first one, and is read by nobody.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_esolm import SlotCache
from .passes_esolm import Pass

# Sizes are powers of two up to this, then multiples of it.
LARGE = 512
# Less of the slots than this is never read.
LEAST_SLOTS = 64
# A rectangle of more tokens is none: computing what fills it up takes longer than many kernels.
MOST_TOKENS = 4096


@dataclass(frozen=True)
class Shape:
    """Rows, tokens that each feeds, slots that each may see, tokens that give logits."""

    rows: int
    width: int
    slots: int
    wanted: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.width

    @property
    def size(self) -> int:
        """Numbers that describe a pass."""
        return 4 * self.num_tokens + self.wanted

    def parts(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """cells, told, slots, reach, each [R * W], and wanted [M]; see `laid_out`."""
        return inputs.split([self.num_tokens] * 4 + [self.wanted])


def rounded(size: int, most: int) -> int:
    """Up, so that there are few sizes."""
    if size > LARGE:
        return min(-(-size // LARGE) * LARGE, most)
    return min(1 << (size - 1).bit_length(), most)


def shape_of(one: Pass, cache: SlotCache) -> Shape | None:
    """None if too much would have to be filled up."""
    rows = rounded(1 + max(writing.row for writing in one.writings), cache.rows)
    width = rounded(max(one.widths), cache.slots)
    if rows * width > MOST_TOKENS:
        return None
    end = max(feed.start + size for feed, size in zip(one.feeds, one.widths, strict=True))
    slots = rounded(max(end, LEAST_SLOTS), cache.slots)
    return Shape(rows, width, slots, rounded(sum(one.counts), rows * width))


def laid_out(one: Pass, shape: Shape, spare: int) -> np.ndarray:
    """int64 [shape.size]: what is fed, [cells | told | slots | reach | wanted].

    cells, told, wanted: as `Pass.in_a_row`, in the rectangle. slots: where the keys and values of
    each token go; reach: it sees those in front of this one, and its own.
    """
    found = np.zeros(shape.size, dtype=np.int64)
    tokens = found[: -shape.wanted].reshape(4, shape.rows, shape.width)
    tokens[1:] = np.array([-1, spare, 1])[:, None, None]
    wanted, first = found[-shape.wanted :], 0
    for writing, feed, width in zip(one.writings, one.feeds, one.widths, strict=True):
        row = tokens[:, writing.row, :width]
        row[0] = feed.cells + writing.row * one.slots
        if feed.told is not None:
            row[1] = feed.told
        row[2] = np.arange(feed.start, feed.start + width)
        row[3] = feed.sight.reach(feed.start, width)
        wanted[first : first + len(feed.wanted)] = feed.wanted + writing.row * shape.width
        first += len(feed.wanted)
    return found


class Rectangle:
    """Attention of such a pass: every token sees the slots of its own row."""

    def __init__(self, cache: SlotCache, shape: Shape, slots: Tensor, reach: Tensor) -> None:
        """slots, reach: int64 [R * W]."""
        self._cache, self._shape = cache, shape
        size = (shape.rows, shape.width)
        self._slots, reach = slots.view(size), reach.view(size)
        self._rows = torch.arange(shape.rows, device=slots.device)[:, None].expand(size)
        key = torch.arange(shape.slots, device=slots.device)
        seen = (key < reach[..., None]) | (key == self._slots[..., None])
        # As numbers, as the kernel would make them of a bool mask in every layer.
        added = cache.layers[0].new_zeros(shape.rows, 1, shape.width, shape.slots)
        self._mask = added.masked_fill_(~seen[:, None], float("-inf"))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, _: bool = False) -> Tensor:
        """[R * W, H, K] each, and returned."""
        size, layer_cache = self._slots.shape, self._cache.layers[layer]
        asks, keys, values = (x.unflatten(0, size) for x in (q, k, v))
        layer_cache[0][self._rows, :, self._slots] = keys
        layer_cache[1][self._rows, :, self._slots] = values
        rows = layer_cache[:, : self._shape.rows, :, : self._shape.slots]
        answers = F.scaled_dot_product_attention(
            asks.transpose(1, 2), rows[0], rows[1], attn_mask=self._mask,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return answers.transpose(1, 2).flatten(0, 1)
