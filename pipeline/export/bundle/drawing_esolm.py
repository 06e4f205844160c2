# mypy: ignore-errors
"""Tokens from logits."""

import torch
from torch import Tensor


class TokenSampler:
    """Draws tokens from logits with noise from a CPU generator, in float64.

    Lower precision would act as a lower temperature (arXiv 2409.02908).
    """

    def __init__(self, temperature: float, top_p: float, generator: torch.Generator) -> None:
        self.temperature, self.top_p, self.generator = temperature, top_p, generator

    def __call__(self, logits: Tensor) -> Tensor:
        """[B, M, V] -> int64 [B, M]."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        scores = logits.double() / self.temperature
        if self.top_p < 1.0:
            scores = keep_nucleus(scores, self.top_p)
        # -log of an exponential variable is a Gumbel variable.
        noise = torch.empty(scores.shape, dtype=torch.float64)
        noise.exponential_(generator=self.generator).clamp_(min=torch.finfo(torch.float64).tiny)
        return (scores - noise.log_().to(scores.device)).argmax(-1)


def keep_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """-inf outside the smallest set of likeliest tokens whose probability reaches top_p.

    The token that crosses top_p is kept.
    """
    probabilities, index = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
    outside = probabilities.cumsum(-1) - probabilities >= top_p
    return scores.masked_fill(outside.scatter(-1, index, outside), float("-inf"))
