# mypy: ignore-errors
"""What the network is made of.

Shape letters: B batch, S tokens fed, D hidden, H heads, G heads of keys and values, K head dim; in
a ragged pass T tokens of all texts, M wanted ones.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_esolm import EsoLMConfig


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


Angles = tuple[Tensor, Tensor]


def rotary_angles(positions: Tensor, config: EsoLMConfig) -> list[Angles]:
    """Of each layer cos and sin, float32 [B, S, 1, 1, K/2].

    Layers of the same base share them. No buffer, so nothing to lose when loading.
    """
    bases = [config.rope_base_of(layer) for layer in range(config.num_hidden_layers)]
    factor, original_length = config.rope_factor, config.rope_original_length
    of_base = {
        base: _angles(
            positions,
            rotary_frequencies(config.head_dim, base, positions.device, factor, original_length),
            0.1 * math.log(factor) + 1.0,
        )
        for base in set(bases)
    }
    return [of_base[base] for base in bases]


def _angles(positions: Tensor, frequencies: Tensor, length: float) -> Angles:
    angles = positions.float()[..., None, None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if length == 1 else (cos * length, sin * length)


@cache
def rotary_frequencies(
    head_dim: int, base: float, device: torch.device, factor: float = 1.0, original_length: int = 0
) -> Tensor:
    """float32 [K/2], to the last bit those of training: in this form, and computed by the CPU.

    A factor above 1 is YaRN's (arXiv 2309.00071): frequencies that turn 32 times within the
    original length stay, those that turn once are slowed by it, and a ramp lies between.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32)
    wavelengths = base ** (exponents / head_dim)
    if factor == 1:
        return (1.0 / wavelengths).to(device)

    def index(turns: int) -> float:
        wavelength = original_length / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(base))

    last = min(math.ceil(index(1)), head_dim - 1)
    first = min(max(math.floor(index(32)), 0), last)
    indices = torch.arange(head_dim // 2, dtype=torch.float32)
    kept = 1 - ((indices - first) / max(last - first, 0.001)).clamp(0, 1)
    slow, fast = 1.0 / (factor * wavelengths), 1.0 / wavelengths
    return (slow * (1 - kept) + fast * kept).to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the halves of the last dimension; computed in at least fp32."""
    first, second = at_least_float32(x).chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


class EsoLMNorm(nn.Module):
    """LayerNorm or RMSNorm, computed in at least fp32; a bias where adaLN was folded in.

    of_heads: it normalises single heads, where no adaLN was.
    """

    def __init__(self, config: EsoLMConfig, of_heads: bool = False) -> None:
        super().__init__()
        self.rms, self.eps = config.norm == "rmsnorm", config.norm_eps
        size = config.head_dim if of_heads else config.hidden_size
        biased = config.norm_bias and not of_heads
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if biased else None

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
    """Rows of the qkv weight are laid out [head, (q, k, v), dim], as in training.

    Where heads share keys and values: of q [head, dim], of kv [head, (k, v), dim].
    """

    def __init__(self, config: EsoLMConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.grouped = config.kv_heads != config.num_attention_heads
        if self.grouped:
            self.q = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            kv_size = config.kv_heads * config.head_dim
            self.kv = nn.Linear(config.hidden_size, 2 * kv_size, bias=False)
        else:
            self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.has_norms = config.qk_norm
        if self.has_norms:
            self.q_norm, self.k_norm = EsoLMNorm(config, True), EsoLMNorm(config, True)

    def forward(
        self, hidden: Tensor, angles: Angles, attend: Callable[..., Tensor],
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """[..., D] -> [..., D]. wanted: int64 [M], the only ones of [T, D] that are answered."""
        q, k, v = self._heads(hidden, angles)
        out = attend(self.layer, q, k, v, wanted is not None).flatten(-2)
        return self.out(out if wanted is None else out[wanted])

    def _heads(self, hidden: Tensor, angles: Angles) -> tuple[Tensor, ...]:
        """Queries [..., H, K], keys and values [..., G, K]; the first two are rotated."""
        if self.grouped:
            q = self.q(hidden).unflatten(-1, (-1, 1, self.head_dim))
            k, v = self.kv(hidden).unflatten(-1, (-1, 2, self.head_dim)).split(1, dim=-2)
        else:
            qkv = self.qkv(hidden).unflatten(-1, (-1, 3, self.head_dim))
            if not self.has_norms:
                return *rotate(qkv[..., :2, :], *angles).unbind(-2), qkv[..., 2, :]
            q, k, v = qkv.split(1, dim=-2)
        if self.has_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        return tuple(x.squeeze(-2) for x in (rotate(q, *angles), rotate(k, *angles), v))


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
        self, hidden: Tensor, angles: Angles, attend: Callable[..., Tensor],
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        answered = self.attention(self.norm1(hidden), angles, attend, wanted)
        hidden = answered + (hidden if wanted is None else hidden[wanted])
        return hidden + self.mlp(self.norm2(hidden))
