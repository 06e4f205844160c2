# mypy: ignore-errors
"""Left-to-right decoding of `ar` networks with an exact key/value cache."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .drawing_esolm import TokenSampler
from .two_phase_esolm import DecodingPlan


@torch.inference_mode()
def decode_left_to_right(
    network: Any, prompt: Tensor, plan: DecodingPlan, sampler: TokenSampler, use_cache: bool,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:  # fmt: skip
    """Predicts each token from the one before it; int64 [B, L]. show: gets every draft [B, L]."""
    batch, length = plan.order.shape
    config = network.config
    front = [] if config.prepend_token_id is None else [config.prepend_token_id]
    tokens = prompt.new_full((batch, len(front) + length), config.mask_token_id)
    tokens[:, : len(front)] = prompt.new_tensor(front)
    written = len(front) + plan.prompt_length
    tokens[:, len(front) : written] = prompt
    cache = network.new_cache(batch, tokens.shape[1]) if use_cache else None
    start = 0
    while written < tokens.shape[1]:
        fed = tokens[:, start:written]
        logits = network(fed, cache=cache, start=start, logits_to_keep=1).logits
        tokens[:, written] = sampler(logits)[:, 0]
        if cache is not None:
            start = written
        written += 1
        if show is not None:
            show(tokens[:, len(front) :].clone())
    return tokens[:, len(front) :]
