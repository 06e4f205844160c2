"""Rotary position embedding on halves (not interleaved), at arbitrary positions."""

from functools import cache

import torch
from torch import Tensor

from esolm.model.numerics import at_least_float32


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Returns the cos and sin, float32 [B, S, K/2], of integer positions [B, S].

    They are computed from the positions each time: a cached table would be one more buffer to keep
    exact, and inputs in any order would have to gather from it anyway.
    """
    angles = positions.float()[..., None] * rotary_frequencies(head_dim, base, positions.device)
    return angles.cos(), angles.sin()


@cache
def rotary_frequencies(head_dim: int, base: float, device: torch.device) -> Tensor:
    """Returns the frequencies, float32 [K/2], equal to those of published checkpoints bit by bit.

    `base ** (-i / K)` is the same number, but not in float32: its last bits differ, and at position
    1,000 that moves an angle by 3e-5 and logits by 2e-4. For the same reason the CPU computes the
    frequencies: powers on a GPU round in their own way.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32)
    return (1.0 / base ** (exponents / head_dim)).to(device)


def rotate(x_BSHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of the last dimension by the angles of each position."""
    first, second = at_least_float32(x_BSHK).chunk(2, dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x_BSHK.dtype)
