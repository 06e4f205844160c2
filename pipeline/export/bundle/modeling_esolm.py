# mypy: ignore-errors
"""The Eso-LM network: every attention pattern by name, and an exact cache for decoding.

Shape letters: B batch, S tokens fed, L output positions (S, or S/2 in a two-stream pattern),
D hidden, H heads, K head dim, V vocabulary, N cache slots.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from .configuration_esolm import EsoLMConfig
from .generation_esolm import EsoLMGenerationConfig, EsoLMGenerationMixin, check_unpadded

PATTERNS = (
    "bidirectional",
    "causal",
    "prefix",
    "two_stream",
    "two_stream_prefix",
    "block_two_stream",
)
# What `block_two_stream` becomes when the noised stream is one block, the last: decoding needs it.
BLOCK_CAUSAL = "block_causal"
CACHEABLE = ("causal", "prefix", BLOCK_CAUSAL)


def visible(
    pattern: str, q: Tensor, k: Tensor, length: int, prefix: Tensor, block_size: int
) -> Tensor:
    """Bool: query index q may see key index k (integer tensors that broadcast).

    In two-stream patterns the noised stream z comes first, the clean stream x second, each of
    `length` tokens; elsewhere `length` is not used. Source: arXiv 2506.01928, sections 3-4.
    """
    if pattern == "bidirectional":
        return (q >= 0) & (k >= 0)
    if pattern == "causal":
        return k <= q
    if pattern == "prefix":
        return (k <= q) | ((q < prefix) & (k < prefix))
    if pattern == BLOCK_CAUSAL:
        return k // block_size <= q // block_size
    q_clean, k_clean = q >= length, k >= length
    i, j = q % length, k % length
    both_in_prefix = (i < prefix) & (j < prefix)
    if pattern == "block_two_stream":
        i, j = i // block_size, j // block_size
    seen = (~q_clean & ~k_clean & (i == j)) | (~q_clean & k_clean & (j < i))
    seen = seen | (q_clean & k_clean & (j <= i))
    if pattern == "two_stream_prefix":
        seen = seen | (q_clean & k_clean & both_in_prefix)
    return seen


def dense_mask(
    pattern: str, seq_len: int, prefix_length: Tensor, block_size: int, start: int = 0
) -> Tensor:
    """The pattern as bool [B, 1, S, start + S]; prefix_length: int [B].

    start: tokens in front of the S that are fed, which only answer.
    """
    index = torch.arange(start + seq_len, device=prefix_length.device)
    q, k = index[None, None, start:, None], index[None, None, None, :]
    prefix = prefix_length[:, None, None, None]
    seen = visible(pattern, q, k, max(seq_len // 2, 1), prefix, block_size)
    return seen.expand(len(prefix_length), 1, seq_len, start + seq_len)


def cached_mask(start: int, num_queries: int, device: torch.device) -> Tensor | None:
    """Causal, aligned to the bottom right: query i sees slots 0 .. start + i. None: sees all."""
    if num_queries == 1:
        return None
    seen = torch.ones(num_queries, start + num_queries, dtype=torch.bool, device=device)
    return seen.tril(diagonal=start)


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


class KeyValueCache:
    """Keys and values in generation order, allocated once.

    A forward pass writes its slots from `start` on. Slots of clean tokens stay; those of masks
    are overwritten by the next pass, which starts where the clean tokens end.
    """

    def __init__(
        self, config: EsoLMConfig, batch: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        row = (config.num_attention_heads, slots, config.head_dim)
        shape = (config.num_hidden_layers, 2, batch, *row)
        self.layers = torch.empty(shape, dtype=dtype, device=device).unbind(0)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores [B, H, S, K] at `start`; returns all that is visible, [B, H, start + S, K]."""
        end = start + keys.shape[2]
        stored_keys, stored_values = self.layers[layer][..., :end, :]
        stored_keys[:, :, start:] = keys
        stored_values[:, :, start:] = values
        return stored_keys, stored_values


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
        self,
        hidden_BSD: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        is_causal: bool,
        cache: KeyValueCache | None,
        start: int,
    ) -> Tensor:
        batch, seq_len, size = hidden_BSD.shape
        qkv = self.qkv(hidden_BSD).view(batch, seq_len, -1, 3, self.head_dim)
        q, k = rotate(qkv[:, :, :, :2], *angles).transpose(1, 2).unbind(3)
        v = qkv[:, :, :, 2].transpose(1, 2)
        if cache is not None:
            k, v = cache.write(self.layer, start, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return self.out(out.transpose(1, 2).reshape(batch, seq_len, size))


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

    def forward(self, hidden_BSD: Tensor, *attention_args) -> Tensor:
        hidden_BSD = hidden_BSD + self.attention(self.norm1(hidden_BSD), *attention_args)
        return hidden_BSD + self.mlp(self.norm2(hidden_BSD))


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
        cache: KeyValueCache | None = None,
        start: int = 0,
        logits_to_keep: int | Tensor = 0,
    ) -> BaseModelOutput:
        """Normalised hidden states [B, L, D] of the output positions; see EsoLMForMaskedLM."""
        streams = self._check(input_ids, attention_pattern, cache)
        seq_len = input_ids.shape[1]
        if position_ids is None:
            natural = torch.arange(start, start + seq_len // streams, device=input_ids.device)
            position_ids = natural.repeat(streams)
        position_ids = expanded("position_ids", position_ids, input_ids)
        is_causal = attention_pattern == "causal" and start == 0
        mask = None
        if attention_pattern == "causal":
            mask = cached_mask(start, seq_len, input_ids.device) if start else None
        elif attention_pattern != "bidirectional":
            if prefix_length is None:
                prefix_length = input_ids.new_zeros(input_ids.shape[0])
            prefix_length = expanded("prefix_length", prefix_length, input_ids[:, 0])
            block_size = block_size or self.config.block_size or 1
            mask = dense_mask(attention_pattern, seq_len, prefix_length, block_size, start)
        angles = rotary_angles(position_ids, self.config.head_dim, self.config.rope_base)
        hidden = self.embed_tokens(input_ids)
        for block in self.layers:
            hidden = block(hidden, angles, mask, is_causal, cache, start)
        hidden = hidden[:, : seq_len // streams]
        hidden = self.norm(kept(hidden, logits_to_keep))
        return BaseModelOutput(last_hidden_state=hidden)

    @staticmethod
    def _check(input_ids: Tensor, pattern: str, cache: KeyValueCache | None) -> int:
        """The number of streams of the pattern."""
        if pattern not in (*PATTERNS, BLOCK_CAUSAL):
            raise ValueError(f"attention_pattern '{pattern}' is unknown; choose of {PATTERNS}")
        if cache is not None and pattern not in CACHEABLE:
            raise ValueError(f"a cache goes with attention patterns {CACHEABLE}, not '{pattern}'")
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
        cache: KeyValueCache | None = None,
        start: int = 0,
        logits_to_keep: int | Tensor = 0,
        attention_mask: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits, at least float32, [B, L, V]; the mask id's is -inf.

        input_ids, position_ids: int64 [B, S]. Positions are natural ones, gathered by the order
        in which the tokens are fed, [S] if all rows share them; by default 0, 1, 2, ... in each
        stream.
        attention_pattern: one of PATTERNS, or `block_causal`. In two-stream patterns the noised
        stream comes first, the clean one second, and only the noised one has logits (L = S / 2).
        prefix_length: int64 [B], number of clean tokens in front (prefix patterns), or one number.
        block_size: tokens of a block (block patterns); None: the network's own, 1 if it has none.
        cache, start: the tokens go to the cache's slots from `start` on, and see slots as if all
        of them were fed. `start` must not lie inside a prefix or a block.
        logits_to_keep: only the last so many positions, 0 means all; or int64 [B, L], which ones.
        attention_mask: as in `generate`, all ones; ValueError if it has zeros.
        """
        check_unpadded(attention_mask)
        hidden = self.model(
            input_ids, position_ids, attention_pattern, prefix_length, block_size,
            cache, start, logits_to_keep,
        ).last_hidden_state  # fmt: skip
        logits = at_least_float32(self.lm_head(hidden))
        logits[..., self.config.mask_token_id] = float("-inf")
        return MaskedLMOutput(logits=logits)

    def new_cache(self, batch: int, slots: int) -> KeyValueCache:
        """An empty cache for `slots` tokens of each of `batch` rows."""
        return KeyValueCache(self.config, batch, slots, self.dtype, self.device)
