# mypy: ignore-errors
"""Two-phase any-order decoding (Eso-LM, arXiv 2506.01928, section 5), variants A and B.

Phase one writes a random subset of the tokens in a few parallel steps, phase two the rest from left
to right. In variant B attention is causal along the generation order, so what a step has computed
for written tokens stays valid: each step feeds only [tokens written by the last step | masks of
this step]. In variant A the tokens of phase one see each other in both directions: each of its
steps computes all of them anew, and they are cached once phase one is over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .drawing_esolm import TokenSampler

# alpha_1 = ALPHA_FLOOR * alpha_0, as in training.
ALPHA_FLOOR = 1e-3


@dataclass(frozen=True)
class DecodingPlan:
    """All that is known before the first pass, for rows that share their number of tokens per pass.

    order: int64 [B, L]. counts: tokens of each pass, which sum to L - prompt_length; the first
    num_diffusion passes belong to the diffusion phase. alpha_0: as it was drawn for.
    """

    order: Tensor
    counts: list[int]
    prompt_length: int
    num_diffusion: int
    alpha_0: float


def diffusion_counts(
    length: int, alpha_0: float, num_steps: int, generator: torch.Generator
) -> list[int]:
    """Tokens written by each diffusion step, one draw for a whole batch; zero steps are dropped.

    From t to s < t each remaining token is written with probability
    (alpha_s - alpha_t) / (1 - alpha_t), where alpha_t = alpha_0 (1 - 0.999 t).
    With alpha_0 = 1 the last step has probability one and nothing is left over.
    """
    times = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    alphas = alpha_0 * (1.0 - (1.0 - ALPHA_FLOOR) * times)
    remaining, counts = length, []
    for alpha_t, alpha_s in pairwise(alphas):
        chance = (alpha_s - alpha_t) / (1.0 - alpha_t)
        trials = torch.tensor(float(remaining), dtype=torch.float64)
        count = int(torch.binomial(trials, chance, generator=generator))
        remaining -= count
        counts += [count] if count else []
    return counts


def draw_plan(
    batch: int, length: int, prompt_length: int, alpha_0: float, num_steps: int,
    generator: torch.Generator,
) -> DecodingPlan:  # fmt: skip
    """Steps shared by the batch, an order for each row.

    The prompt comes first, then the tokens of the diffusion steps in random order, then what is
    left, one token per pass from left to right.
    """
    free = length - prompt_length
    counts = diffusion_counts(free, alpha_0, num_steps, generator)
    num_diffusion = len(counts)
    scores = torch.rand(batch, free, dtype=torch.float64, generator=generator)
    order = scores.argsort(dim=1) + prompt_length
    order[:, sum(counts) :] = order[:, sum(counts) :].sort(dim=1).values
    prompt = torch.arange(prompt_length).expand(batch, prompt_length)
    counts += [1] * (free - sum(counts))
    order = torch.cat([prompt, order], dim=1)
    return DecodingPlan(order, counts, prompt_length, num_diffusion, alpha_0)


@torch.inference_mode()
def decode_causal(
    network: Any, prompt: Tensor, plan: DecodingPlan, sampler: TokenSampler, use_cache: bool,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Runs the plan of a variant B network; int64 [B, L]. show: gets every draft [B, L]."""
    draft = Draft(network, prompt, plan, show)
    cache = network.new_cache(*plan.order.shape) if use_cache else None
    start = 0
    for count in plan.counts:
        written = draft.written
        draft.step(count, sampler, start, cache=cache)
        if cache is not None:
            start = written
    return draft.in_natural_order()


@torch.inference_mode()
def decode_prefix(
    network: Any, prompt: Tensor, plan: DecodingPlan, sampler: TokenSampler, use_cache: bool,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Runs the plan of a variant A network; int64 [B, L]. show: gets every draft [B, L].

    The P tokens in front see each other: in the diffusion phase all that are written, afterwards
    those of the diffusion phase. A prompt is among them, but at alpha_0 = 0 nothing is: a network
    without a diffusion phase has only ever read from left to right.
    """
    draft = Draft(network, prompt, plan, show)
    cache, start = None, 0
    num_prefix = plan.prompt_length if plan.alpha_0 else 0
    for number, count in enumerate(plan.counts):
        written, is_diffusion = draft.written, number < plan.num_diffusion
        if not is_diffusion and cache is None and use_cache:
            cache = network.new_cache(*plan.order.shape)
        prefix_length = prompt.new_full((len(prompt),), num_prefix)
        draft.step(count, sampler, start, "prefix", prefix_length, cache)
        if is_diffusion:
            num_prefix = draft.written
        elif cache is not None:
            start = written
    return draft.in_natural_order()


class Draft:
    """The tokens of a batch in generation order, masks where nothing is written yet.

    So the slice from the first token that is not cached to the last of a step is what a pass needs.
    """

    def __init__(
        self, network: Any, prompt: Tensor, plan: DecodingPlan,
        show: Callable[[Tensor], None] | None,
    ) -> None:  # fmt: skip
        self._network, self._order, self._show = network, plan.order, show
        self._tokens = prompt.new_full(plan.order.shape, network.config.mask_token_id)
        self._tokens[:, : plan.prompt_length] = prompt
        self._natural_order = plan.order.argsort(dim=1)
        self.written = plan.prompt_length

    def step(
        self, count: int, sampler: TokenSampler, start: int, pattern: str = "causal",
        prefix_length: Tensor | None = None, cache: Any = None,
    ) -> None:  # fmt: skip
        """One pass: feeds the tokens from `start` on and `count` masks, and writes those."""
        end = self.written + count
        logits = self._network(
            self._tokens[:, start:end], self._order[:, start:end], pattern, prefix_length,
            cache=cache, start=start, logits_to_keep=count,
        ).logits  # fmt: skip
        self._tokens[:, self.written : end] = sampler(logits)
        self.written = end
        if self._show is not None:
            self._show(self.in_natural_order())

    def in_natural_order(self) -> Tensor:
        return self._tokens.gather(1, self._natural_order)
