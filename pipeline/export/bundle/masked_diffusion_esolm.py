# mypy: ignore-errors
"""Ancestral decoding of masked diffusion networks: MDLM all at once, BD3-LM block by block.

Sources: arXiv 2406.07524, section 4; arXiv 2503.09573, section 3. A row takes no pass for a step
that writes none of its tokens: the network is not told the time, so nothing would change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .drawing_esolm import TokenSampler


@dataclass(frozen=True)
class BlockPlan:
    """All that is known before the first pass.

    passes: int64 [B, L], the pass that writes each token; -1 for the prompt's. ends: of each pass,
    the position where its block ends. Every row passes over its own steps, so a row may be done
    with a block before the others are.
    """

    passes: Tensor
    ends: list[int]
    block_size: int
    prompt_length: int

    @property
    def num_diffusion(self) -> int:
        return len(self.ends)

    @property
    def order(self) -> Tensor:
        """int64 [B, L], natural positions in the order of writing."""
        return self.passes.argsort(dim=1, stable=True)

    @property
    def counts(self) -> list[list[int]]:
        """[nfe, B], tokens of each row written by each pass."""
        return [(self.passes == number).sum(1).tolist() for number in range(len(self.ends))]


def draw_passes(batch: int, length: int, num_steps: int, generator: torch.Generator) -> Tensor:
    """int64 [B, L], when each token is written: steps that write nothing of a row are left out.

    From t to s < t each remaining token is written with probability
    (alpha_s - alpha_t) / (1 - alpha_t), by itself. With alpha_t = 1 - 0.999 t, as with 1 - t, that
    is (t - s) / t, and on a uniform grid from 1 to 0 every step is equally likely for a token.
    """
    steps = torch.randint(num_steps, (batch, length), generator=generator)
    ordered, index = steps.sort(dim=1)
    is_next = ordered.diff(dim=1, prepend=ordered[:, :1]) > 0
    return torch.empty_like(steps).scatter_(1, index, is_next.cumsum(1))


def draw_block_plan(
    prompt: Tensor, length: int, block_size: int, num_steps: int, generator: torch.Generator
) -> BlockPlan:
    """num_steps: of each block. Raises ValueError unless the length is made of whole blocks."""
    if length % block_size:
        raise ValueError(
            f"length is {length}; it must be a multiple of the block size {block_size}"
        )
    batch, prompt_length = prompt.shape
    passes = torch.full((batch, length), -1)
    ends: list[int] = []
    for end in range(block_size, length + 1, block_size):
        first = max(end - block_size, prompt_length)
        if first < end:
            drawn = draw_passes(batch, end - first, num_steps, generator)
            passes[:, first:end] = len(ends) + drawn
            ends += [end] * (int(drawn.max()) + 1)
    return BlockPlan(passes.to(prompt.device), ends, block_size, prompt_length)


@torch.inference_mode()
def decode_blocks(
    network: Any, prompt: Tensor, plan: BlockPlan, sampler: TokenSampler, use_cache: bool,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Runs the plan; int64 [B, L]. show: gets every draft [B, L].

    A block sees itself and the finished blocks before it, whose keys and values stay valid: with a
    cache, a pass feeds [the block before, in the first pass of a block | this block]. A single
    block, as of MDLM, leaves nothing to be cached.
    """
    tokens = prompt.new_full(plan.passes.shape, network.config.mask_token_id)
    tokens[:, : plan.prompt_length] = prompt
    size, start = plan.block_size, 0
    pattern = "block_causal" if size < tokens.shape[1] else "bidirectional"
    cache = network.new_cache(*tokens.shape) if use_cache and pattern == "block_causal" else None
    for number, end in enumerate(plan.ends):
        places, is_due = due(plan.passes[:, end - size : end] == number)
        places = places + end - size
        logits = network(
            tokens[:, start:end], attention_pattern=pattern, block_size=size, cache=cache,
            start=start, logits_to_keep=places - start,
        ).logits  # fmt: skip
        old = tokens.gather(1, places)
        tokens.scatter_(1, places, torch.where(is_due, sampler(logits), old))
        if cache is not None:
            start = end - size
        if show is not None:
            show(tokens.clone())
    return tokens


def due(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen places of each row, filled up with others to the most that a row has.

    bool [B, L] -> int64 [B, K], no place twice, and bool [B, K]: which are the chosen ones.
    """
    most = int(chosen.sum(1).max())
    places = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return places, chosen.gather(1, places)
