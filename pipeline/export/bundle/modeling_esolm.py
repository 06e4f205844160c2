# mypy: ignore-errors
"""The Eso-LM network: every attention pattern by name, and the ragged passes of decoding.

Shape letters: B batch, S tokens fed, L output positions (S, or S/2 in a two-stream pattern),
D hidden, H heads, K head dim, V vocabulary; in a ragged pass T tokens of all texts, M wanted ones.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .attention_esolm import PATTERNS, CachedRows, WholeRows, dense_mask
from .configuration_esolm import EsoLMConfig
from .generation_esolm import EsoLMGenerationConfig, EsoLMGenerationMixin
from .prompts_esolm import check_unpadded


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


class EsoLMBlock(nn.Module):
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


class EsoLMPreTrainedModel(PreTrainedModel):
    config_class = EsoLMConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ("EsoLMBlock",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EsoLMNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)


class EsoLMModel(EsoLMPreTrainedModel):
    """Embedding, blocks and final norm."""

    def __init__(self, config: EsoLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            EsoLMBlock(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = EsoLMNorm(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_pattern: str = "causal",
        prefix_length: Tensor | int | None = None,
        block_size: int | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> BaseModelOutput:
        """Normalised hidden states [B, L, D] of the output positions; see EsoLMForMaskedLM."""
        streams = self._check(input_ids, attention_pattern)
        seq_len = input_ids.shape[1]
        if position_ids is None:
            natural = torch.arange(seq_len // streams, device=input_ids.device)
            position_ids = natural.repeat(streams)
        position_ids = expanded("position_ids", position_ids, input_ids)
        mask = None
        if attention_pattern not in ("bidirectional", "causal"):
            if prefix_length is None:
                prefix_length = input_ids.new_zeros(input_ids.shape[0])
            prefix_length = expanded("prefix_length", prefix_length, input_ids[:, 0])
            block_size = block_size or self.config.block_size or 1
            mask = dense_mask(attention_pattern, seq_len, prefix_length, block_size)
        attend = WholeRows(mask, is_causal=attention_pattern == "causal")
        angles = rotary_angles(position_ids, self.config.head_dim, self.config.rope_base)
        hidden = self.embed_tokens(input_ids)
        for block in self.layers:
            hidden = block(hidden, angles, attend)
        hidden = hidden[:, : seq_len // streams]
        return BaseModelOutput(last_hidden_state=self.norm(kept(hidden, logits_to_keep)))

    def decode(
        self, input_ids: Tensor, position_ids: Tensor, attend: CachedRows, wanted: Tensor
    ) -> Tensor:
        """Normalised hidden states [M, D] of the wanted ones, int64 [M], of the tokens [T] fed."""
        angles = rotary_angles(position_ids, self.config.head_dim, self.config.rope_base)
        hidden = self.embed_tokens(input_ids)
        for block in self.layers[:-1]:
            hidden = block(hidden, angles, attend)
        return self.norm(self.layers[-1](hidden, angles, attend, wanted))

    @staticmethod
    def _check(input_ids: Tensor, pattern: str) -> int:
        """The number of streams of the pattern."""
        if pattern not in PATTERNS:
            raise ValueError(f"attention_pattern '{pattern}' is unknown; choose of {PATTERNS}")
        streams = 2 if "two_stream" in pattern else 1
        if input_ids.shape[1] % streams:
            raise ValueError(f"'{pattern}' takes two streams, not {input_ids.shape[1]} tokens")
        return streams


def expanded(name: str, values: Any, like: Tensor) -> Tensor:
    """A number, list or tensor in the shape and on the device of `like`."""
    values = torch.as_tensor(values, device=like.device)
    try:
        return values.expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; {tuple(like.shape)} is due"
        ) from None


def kept(hidden_BSD: Tensor, positions: int | Tensor) -> Tensor:
    """The last so many positions (0: all), or those of int64 [B, L]."""
    if isinstance(positions, Tensor):
        return hidden_BSD.gather(1, positions[..., None].expand(-1, -1, hidden_BSD.shape[2]))
    return hidden_BSD[:, -positions:]


class EsoLMForMaskedLM(EsoLMPreTrainedModel, EsoLMGenerationMixin):
    """The network with its output layer: logits in every attention pattern, and `generate`."""

    generation_config_class = EsoLMGenerationConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: EsoLMConfig) -> None:
        super().__init__(config)
        self.model = EsoLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.output_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_pattern: str = "causal",
        prefix_length: Tensor | int | None = None,
        block_size: int | None = None,
        logits_to_keep: int | Tensor = 0,
        attention_mask: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits, at least float32, [B, L, V]; the mask id's is -inf.

        input_ids, position_ids: int64 [B, S]. Positions are natural ones, gathered by the order
        in which the tokens are fed, [S] if all rows share them; by default 0, 1, 2, ... in each
        stream.
        attention_pattern: one of PATTERNS. In two-stream patterns the noised stream comes first,
        the clean one second, and only the noised one has logits (L = S / 2).
        prefix_length: int64 [B], number of clean tokens in front (prefix patterns), or one number.
        block_size: tokens of a block (block patterns); None: the network's own, 1 if it has none.
        logits_to_keep: only the last so many positions, 0 means all; or int64 [B, L], which ones.
        attention_mask: as in `generate`, all ones; ValueError if it has zeros.
        """
        check_unpadded(attention_mask)
        hidden = self.model(
            input_ids, position_ids, attention_pattern, prefix_length, block_size, logits_to_keep
        ).last_hidden_state
        return MaskedLMOutput(logits=self._logits(hidden))

    def decode(
        self, input_ids: Tensor, position_ids: Tensor, attend: CachedRows, wanted: Tensor
    ) -> Tensor:
        """A pass of `decoding_esolm`: logits [M, V] of those wanted, int64 [M], of T tokens fed.

        input_ids, position_ids: int64 [T], of all texts one after the other. attend: who sees what.
        """
        return self._logits(self.model.decode(input_ids, position_ids, attend, wanted))

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = at_least_float32(self.lm_head(hidden))
        logits[..., self.config.mask_token_id] = float("-inf")
        return logits
