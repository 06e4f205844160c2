# mypy: ignore-errors
"""Tokens from logits, each by numbers that belong to its place in its text.

So what is drawn does not depend on what else is in the batch, nor on where the network runs.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

# Nuclei are drawn from by trying: a token of all, until one lies inside. So many times.
TRIES = 8
# Probabilities are added up in float64 over blocks of so many tokens.
BLOCK = 256
# Rows that are drawn at once: more would only leave the processor's cache.
ROWS_AT_ONCE = 64


class Stream(IntEnum):
    """What a stream of random numbers is for."""

    COUNTS = 0
    ORDER = 1
    TOKENS = 2
    GUESSES = 3
    ACCEPTANCE = 4
    LENGTHS = 5


def random_numbers(seed: int, sample: int, purpose: Stream, part: int = 0) -> np.random.Generator:
    """The stream of one text: a function of these numbers alone (Philox)."""
    key = np.array([seed % 2**64, (sample * len(Stream) + purpose) % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, part]))


@dataclass
class Rules:
    """How each of M tokens is drawn, float64 or int64 [M].

    temperature: 0 takes the likeliest. top_p: the likeliest tokens that reach this probability
    together; all that are as likely as the last of them belong to them too; 1 keeps everything.
    top_k: the so many likeliest, before top_p; 0 keeps everything.
    """

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Rules":
        return Rules(self.temperature[rows], self.top_p[rows], self.top_k[rows])


def draw(logits: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
    """[M, V] in at least float32 -> int64 [M]. uniforms: float64 [M, TRIES] in [0, 1)."""
    rows = range(0, len(logits), ROWS_AT_ONCE)
    drawn = [_draw(logits[i : i + ROWS_AT_ONCE], rules[i : i + ROWS_AT_ONCE],
                   uniforms[i : i + ROWS_AT_ONCE]) for i in rows]  # fmt: skip
    return torch.cat(drawn) if drawn else logits.new_zeros(0, dtype=torch.int64)


def _draw(logits: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
    greedy = rules.temperature == 0
    if bool(greedy.all()):
        return logits.argmax(-1)
    weights = weights_of(logits, rules)
    tokens = inverted(weights, uniforms[:, 0])
    rows = (rules.top_p < 1).nonzero()[:, 0]
    for number in range(1, TRIES):
        if len(rows):
            rows = rows[~_inside(weights[rows], tokens[rows], rules.top_p[rows])]
        if not len(rows):
            break
        left = weights[rows]
        if number == TRIES - 1:
            left = keep_nucleus(left, rules.top_p[rows])
        tokens[rows] = inverted(left, uniforms[rows, number])
    return torch.where(greedy, logits.argmax(-1), tokens) if bool(greedy.any()) else tokens


def weights_of(logits: Tensor, rules: Rules) -> Tensor:
    """Unnormalised probabilities [M, V'], zero beyond V and for what top_k leaves out.

    V' is a multiple of BLOCK. Rows of temperature 0 are those of temperature 1.
    """
    count, size = logits.shape
    weights = logits.new_zeros(count, -(-size // BLOCK) * BLOCK)
    kept = weights[:, :size]
    torch.sub(logits, logits.amax(-1, keepdim=True), out=kept)
    if bool(((rules.temperature != 1) & (rules.temperature != 0)).any()):
        divisor = torch.where(rules.temperature == 0, 1.0, rules.temperature)
        # Rounded to 0 or to infinity, it would make NaN of the likeliest or of what is left out.
        range_of = torch.finfo(kept.dtype)
        kept /= divisor[:, None].clamp(range_of.tiny, range_of.max).to(kept.dtype)
    kept.exp_()
    limited = ((rules.top_k > 0) & (rules.top_k < size)).nonzero()[:, 0]
    if len(limited):
        most = int(rules.top_k[limited].max())
        likeliest = weights[limited].topk(most, dim=-1).values
        least = likeliest.gather(1, rules.top_k[limited][:, None] - 1)
        weights[limited] = weights[limited].where(weights[limited] >= least, 0.0)
    return weights


def probabilities_of(logits: Tensor, rules: Rules) -> Tensor:
    """What `draw` draws from, normalised, float64 [M, V']; for few rows at a time."""
    weights = weights_of(logits, rules)
    narrowed = (rules.top_p < 1).nonzero()[:, 0]
    if len(narrowed):
        weights[narrowed] = keep_nucleus(weights[narrowed], rules.top_p[narrowed])
    greedy = rules.temperature == 0
    if bool(greedy.any()):
        alone = torch.zeros_like(weights).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
        weights = torch.where(greedy[:, None], alone, weights)
    weights = weights.double()
    return weights / weights.sum(-1, keepdim=True)


def inverted(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the sum of the weights [M, V'] passes a share `uniforms` [M] of it all."""
    blocks, sums = weights.unflatten(-1, (-1, BLOCK)), in_blocks(weights)
    block, rest = _passed(sums, uniforms * sums.sum(-1))
    index = block[:, None, None].expand(-1, 1, BLOCK)
    within, _ = _passed(blocks.gather(1, index)[:, 0].double(), rest)
    return block * BLOCK + within


def in_blocks(weights: Tensor) -> Tensor:
    """The sums of the blocks, float64 [M, V' / BLOCK].

    Within a block they are added as they are: a float64 copy of all would cost more than the draw.
    """
    return weights.unflatten(-1, (-1, BLOCK)).sum(-1).double()


def _passed(parts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sum of the parts [M, N] passes the target [M], and what is left of it there."""
    sums = parts.cumsum(-1)
    # A part of zero is never the one: the sum does not grow there.
    target = torch.minimum(target, sums[:, -1].nextafter(torch.zeros_like(target)))[:, None]
    index = torch.searchsorted(sums, target, right=True)
    return index[:, 0], (target - sums.gather(1, index) + parts.gather(1, index))[:, 0].clamp(min=0)


def _inside(weights: Tensor, tokens: Tensor, top_p: Tensor) -> Tensor:
    """Bool [M]: whether all likelier tokens together stay below top_p."""
    own = weights.gather(1, tokens[:, None])
    likelier = in_blocks(torch.where(weights > own, weights, 0.0)).sum(-1)
    return likelier < top_p * in_blocks(weights).sum(-1)


def keep_nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """The weights [M, V'], zero outside of the nucleus of each row."""
    ordered = weights.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1, dtype=torch.float64)
    # The last token before which less than top_p was reached.
    last = ((sums - ordered) < top_p[:, None] * sums[:, -1:]).sum(-1, keepdim=True) - 1
    return weights.where(weights >= ordered.gather(1, last), 0.0)
