"""Rotary position embedding on halves (not interleaved), at arbitrary positions."""

import torch
from torch import Tensor

from model.numerics import at_least_float32


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [B, S, K/2], of int positions [B, S].

    Computed from the positions each time: a cached table would be one more buffer to keep exact,
    and any-order inputs gather it anyway.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * base ** (-exponents / head_dim)
    return angles.cos(), angles.sin()


def rotate(x_BSHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of the last dimension by the angles of each position."""
    first, second = at_least_float32(x_BSHK).chunk(2, dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x_BSHK.dtype)
