# mypy: ignore-errors
"""What the network is made of.

Shape letters: B batch, S tokens fed, D hidden, H heads, K head dim; in a ragged pass T tokens of
all texts, M wanted ones.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_esolm import EsoLMConfig


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rotary_angles(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [B, S, 1, 1, K/2]; no buffer, so nothing to lose when loading."""
    frequencies = rotary_frequencies(head_dim, base, positions.device)
    angles = positions.float()[..., None, None, None] * frequencies
    return angles.cos(), angles.sin()


@cache
def rotary_frequencies(head_dim: int, base: float, device: torch.device) -> Tensor:
    """float32 [K/2], to the last bit those of training: in this form, and computed by the CPU."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32)
    return (1.0 / base ** (exponents / head_dim)).to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of the last dimension; computed in at least fp32."""
    first, second = at_least_float32(x).chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


class EsoLMNorm(nn.Module):
    """LayerNorm or RMSNorm, computed in at least fp32; a bias where adaLN was folded in."""

    def __init__(self, config: EsoLMConfig) -> None:
        super().__init__()
        self.rms, self.eps = config.norm == "rmsnorm", config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.norm_bias else None

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        x = at_least_float32(hidden_BSD)
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.rms:
            x = F.rms_norm(x, weight.shape, weight, self.eps)
            x = x if bias is None else x + bias
        else:
            x = F.layer_norm(x, weight.shape, weight, bias, self.eps)
        return x.to(hidden_BSD.dtype)


class EsoLMAttention(nn.Module):
    """Rows of the qkv weight are laid out [head, (q, k, v), dim], as in training."""

    def __init__(self, config: EsoLMConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], attend: Callable[..., Tensor],
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[..., D] -> [..., D]. wanted: int64 [M], the only ones of [T, D] that are answered."""
        qkv = self.qkv(hidden).unflatten(-1, (-1, 3, self.head_dim))
        q, k = rotate(qkv[..., :2, :], *angles).unbind(-2)
        out = attend(self.layer, q, k, qkv[..., 2, :], wanted is not None).flatten(-2)
        return self.out(out if wanted is None else out[wanted])


class EsoLMFeedForward(nn.Module):
    """GELU(tanh) or SwiGLU. The rows of a SwiGLU `up` weight alternate (gate, value)."""

    def __init__(self, config: EsoLMConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        width = config.intermediate_size * (2 if self.gated else 1)
        self.up = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        up = self.up(hidden_BSD)
        if self.gated:
            gate, value = up.unflatten(-1, (-1, 2)).unbind(-1)
            return self.down(F.silu(gate) * value)
        return self.down(F.gelu(up, approximate="tanh"))


class EsoLMBlock(GradientCheckpointingLayer):
    """Attention and feed-forward, each behind its norm."""

    def __init__(self, config: EsoLMConfig, layer: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = EsoLMNorm(config), EsoLMNorm(config)
        self.attention = EsoLMAttention(config, layer)
        self.mlp = EsoLMFeedForward(config)

    def forward(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], attend: Callable[..., Tensor],
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        answered = self.attention(self.norm1(hidden), angles, attend, wanted)
        hidden = answered + (hidden if wanted is None else hidden[wanted])
        return hidden + self.mlp(self.norm2(hidden))
