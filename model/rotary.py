"""Rotary position embedding on halves (not interleaved), at arbitrary positions."""

import math
from functools import cache

import torch
from torch import Tensor

from esolm.model.compiling import piece
from esolm.model.config import Rotation
from esolm.model.documents import place_of
from esolm.model.numerics import at_least_float32

# YaRN leaves frequencies that turn so often within the original length as they are, and slows those
# that turn less than so often by the whole factor (arXiv 2309.00071, section 3.2).
FAST_TURNS, SLOW_TURNS = 32, 1


def rotary_angles(positions: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Returns the cos and sin, float32 [B, S, K/2], of positions [B, S], by their places alone.

    They are computed from the positions each time: a cached table would be one more buffer to keep
    exact, and inputs in any order would have to gather from it anyway. Under YaRN both are longer
    than 1, which makes the scores of attention larger, as section 3.4 there has it.
    """
    length = 1.0 if rotation.factor == 1 else 0.1 * math.log(rotation.factor) + 1.0
    return _angles(positions, rotary_frequencies(rotation, positions.device), length)


@piece
def _angles(positions: Tensor, frequencies: Tensor, length: float) -> tuple[Tensor, Tensor]:
    angles = place_of(positions).float()[..., None] * frequencies
    return angles.cos() * length, angles.sin() * length


@cache
def rotary_frequencies(rotation: Rotation, device: torch.device) -> Tensor:
    """Returns the frequencies, float32 [K/2], equal to those of published checkpoints bit by bit.

    `base ** (-i / K)` is the same number, but not in float32: its last bits differ, and at position
    1,000 that moves an angle by 3e-5 and logits by 2e-4. For the same reason the CPU computes the
    frequencies: powers on a GPU round in their own way.
    """
    exponents = torch.arange(0, rotation.head_dim, 2, dtype=torch.float32)
    wavelengths = rotation.base ** (exponents / rotation.head_dim)
    if rotation.factor == 1:
        return (1.0 / wavelengths).to(device)
    kept = _kept(rotation)
    slow, fast = 1.0 / (rotation.factor * wavelengths), 1.0 / wavelengths
    return (slow * (1 - kept) + fast * kept).to(device)


def _kept(rotation: Rotation) -> Tensor:
    """Returns how far each frequency stays as it is, float32 [K/2], from 0 to 1.

    As in transformers, bit by bit, the ramp is linear in the index, between whole indices.
    """

    def index(turns: int) -> float:
        """Where a frequency turns so often within the original length."""
        wavelength = rotation.original_length / (turns * 2 * math.pi)
        return rotation.head_dim * math.log(wavelength) / (2 * math.log(rotation.base))

    last = min(math.ceil(index(SLOW_TURNS)), rotation.head_dim - 1)
    first = min(max(math.floor(index(FAST_TURNS)), 0), last)
    indices = torch.arange(rotation.head_dim // 2, dtype=torch.float32)
    return 1 - ((indices - first) / max(last - first, 0.001)).clamp(0, 1)


@piece
def rotate(x_BSHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of the last dimension by the angles of each position."""
    first, second = at_least_float32(x_BSHK).chunk(2, dim=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    # Rounded before they are joined, or a compiled kernel writes both in float32 first.
    halves = first * cos - second * sin, second * cos + first * sin
    return torch.cat([half.to(x_BSHK.dtype) for half in halves], dim=-1)
