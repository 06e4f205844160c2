# mypy: ignore-errors
"""Tokens from logits, each by numbers that belong to its place in its text.

So what is drawn does not depend on what else is in the batch, nor on where the network runs.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .copies_esolm import in_one_copy

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


class Numbers(NamedTuple):
    """How each of M tokens is drawn, float64, float64 and int64 [M], as arrays or tensors.

    temperature: 0 takes the likeliest. top_p: the likeliest tokens that reach this probability
    together; all that are as likely as the last of them belong to them too; 1 keeps everything.
    top_k: the so many likeliest, before top_p; 0 keeps everything.
    """

    temperature: Any
    top_p: Any
    top_k: Any

    def of(self, rows: Any) -> "Numbers":
        return Numbers(*(each[rows] for each in self))


class Rules(NamedTuple):
    """The same numbers twice: for the host, which then need not ask the device what there is to
    do, and beside the logits.
    """

    host: Numbers
    there: Numbers

    @classmethod
    def alike(
        cls, count: int, temperature: float, top_p: float, top_k: int, device: torch.device
    ) -> "Rules":
        """For so many tokens."""
        host = Numbers(
            np.full(count, float(temperature)),
            np.full(count, float(top_p)),
            np.full(count, int(top_k)),
        )
        return cls(host, Numbers(*in_one_copy(list(host), device)))

    def of(self, rows: slice | np.ndarray, there: slice | Tensor) -> "Rules":
        """Of some rows, which are named twice as well."""
        return Rules(self.host.of(rows), self.there.of(there))


def draw(logits: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
    """[M, V] in at least float32 -> int64 [M]. uniforms: float64 [M, TRIES] in [0, 1)."""
    parts = [slice(i, i + ROWS_AT_ONCE) for i in range(0, len(logits), ROWS_AT_ONCE)]
    drawn = [_draw(logits[part], rules.of(part, part), uniforms[part]) for part in parts]
    return torch.cat(drawn) if drawn else logits.new_zeros(0, dtype=torch.int64)


def _draw(logits: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
    greedy = rules.host.temperature == 0
    if greedy.all():
        return logits.argmax(-1)
    weights = weights_of(logits, rules)
    if (rules.host.top_p < 1).any():
        in_nucleus = by_trying if weights.is_cpu else by_sorting
        tokens = in_nucleus(weights, rules, uniforms)
    else:
        tokens = inverted(weights, uniforms[:, 0])
    if greedy.any():
        tokens = torch.where(rules.there.temperature == 0, logits.argmax(-1), tokens)
    return tokens


def by_trying(weights: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
    """Sorts only for the tokens for which all tries but the last were in vain: for a CPU."""
    tokens = inverted(weights, uniforms[:, 0])
    rows = torch.from_numpy((rules.host.top_p < 1).nonzero()[0])
    for number in range(1, TRIES):
        rows = rows[~_inside(weights[rows], tokens[rows], rules.there.top_p[rows])]
        if not len(rows):
            break
        left = weights[rows]
        if number == TRIES - 1:
            left = keep_nucleus(left, rules.there.top_p[rows])
        tokens[rows] = inverted(left, uniforms[rows, number])
    return tokens


def by_sorting(weights: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
    """The same tokens, and no shape depends on what is drawn: a GPU need not be waited for."""
    least = least_of_nucleus(weights, rules.there.top_p)
    tries = _inverted(weights, uniforms[:, :-1])
    last = _inverted(weights.where(weights >= least, 0.0), uniforms[:, -1:])
    tokens = torch.cat([tries, last], dim=1)
    is_inside = weights.gather(1, tokens) >= least
    return tokens.gather(1, is_inside.int().argmax(1, keepdim=True))[:, 0]


def weights_of(logits: Tensor, rules: Rules) -> Tensor:
    """Unnormalised probabilities [M, V'], zero beyond V and for what top_k leaves out.

    V' is a multiple of BLOCK. Rows of temperature 0 are those of temperature 1.
    """
    count, size = logits.shape
    host, there = rules
    weights = logits.new_zeros(count, -(-size // BLOCK) * BLOCK)
    kept = weights[:, :size]
    torch.sub(logits, logits.amax(-1, keepdim=True), out=kept)
    if ((host.temperature != 1) & (host.temperature != 0)).any():
        divisor = torch.where(there.temperature == 0, 1.0, there.temperature)
        # Rounded to 0 or to infinity, it would make NaN of the likeliest or of what is left out.
        range_of = torch.finfo(kept.dtype)
        kept /= divisor[:, None].clamp(range_of.tiny, range_of.max).to(kept.dtype)
    kept.exp_()
    limited = host.top_k[(host.top_k > 0) & (host.top_k < size)]
    if len(limited):
        most = int(limited.max())
        likeliest = weights.topk(most, dim=-1).values
        least = likeliest.gather(1, there.top_k.clamp(1, most)[:, None] - 1)
        is_limited = (there.top_k > 0) & (there.top_k < size)
        weights = weights.where((weights >= least) | ~is_limited[:, None], 0.0)
    return weights


def probabilities_of(logits: Tensor, rules: Rules) -> Tensor:
    """What `draw` draws from, normalised, float64 [M, V']; for few rows at a time."""
    weights = weights_of(logits, rules)
    if (rules.host.top_p < 1).any():
        weights = keep_nucleus(weights, rules.there.top_p)
    if (rules.host.temperature == 0).any():
        alone = torch.zeros_like(weights).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
        weights = torch.where(rules.there.temperature[:, None] == 0, alone, weights)
    weights = weights.double()
    return weights / weights.sum(-1, keepdim=True)


def inverted(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the sum of the weights [M, V'] passes a share `uniforms` [M] of it all."""
    return _inverted(weights, uniforms[:, None])[:, 0]


def _inverted(weights: Tensor, uniforms: Tensor) -> Tensor:
    """For several shares of each row, [M, N]."""
    blocks, sums = weights.unflatten(-1, (-1, BLOCK)), in_blocks(weights)
    block, rest = _passed(sums, uniforms * sums.sum(-1, keepdim=True))
    index = block[..., None].expand(-1, -1, BLOCK)
    within, _ = _passed(blocks.gather(1, index).double(), rest[..., None])
    return block * BLOCK + within[..., 0]


def in_blocks(weights: Tensor) -> Tensor:
    """The sums of the blocks, float64 [M, V' / BLOCK].

    Within a block they are added as they are: a float64 copy of all would cost more than the draw.
    """
    return weights.unflatten(-1, (-1, BLOCK)).sum(-1).double()


def _passed(parts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sums of the parts [..., P] pass the targets [..., N], and what is left of these."""
    sums = parts.cumsum(-1)
    # A part of zero is never the one: the sum does not grow there.
    target = torch.minimum(target, sums[..., -1:].nextafter(sums.new_zeros(())))
    index = torch.searchsorted(sums, target, right=True)
    return index, (target - sums.gather(-1, index) + parts.gather(-1, index)).clamp(min=0)


def _inside(weights: Tensor, tokens: Tensor, top_p: Tensor) -> Tensor:
    """Bool [M]: whether all likelier tokens together stay below top_p."""
    own = weights.gather(1, tokens[:, None])
    likelier = in_blocks(torch.where(weights > own, weights, 0.0)).sum(-1)
    return likelier < top_p * in_blocks(weights).sum(-1)


def keep_nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """The weights [M, V'], zero outside of the nucleus of each row."""
    return weights.where(weights >= least_of_nucleus(weights, top_p), 0.0)


def least_of_nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """The smallest weight in the nucleus of each row, [M, 1]; 0 where all are kept."""
    ordered = weights.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1, dtype=torch.float64)
    # The last token before which less than top_p was reached.
    last = ((sums - ordered) < top_p[:, None] * sums[:, -1:]).sum(-1, keepdim=True) - 1
    return torch.where(top_p[:, None] < 1, ordered.gather(1, last), 0.0)
