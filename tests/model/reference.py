"""The network and its attention rules once more, in float64 and in loops, without megatron-core."""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from esolm.model.attention import AttentionPattern
from esolm.model.config import ModelConfig
from esolm.model.inputs import NetworkInput

Sees = Callable[[int, int], bool]


def sees(
    pattern: AttentionPattern, q: int, k: int, length: int, prefix: int, block_size: int
) -> bool:
    """Whether query q sees key k, as the table of attention patterns says it in words."""
    if pattern is AttentionPattern.BIDIRECTIONAL:
        return True
    if pattern is AttentionPattern.CAUSAL:
        return k <= q
    if pattern is AttentionPattern.PREFIX:
        return k <= q or (q < prefix and k < prefix)
    query_is_noised, key_is_noised = q < length, k < length
    i = q if query_is_noised else q - length
    j = k if key_is_noised else k - length
    if pattern is AttentionPattern.BLOCK_TWO_STREAM:
        i, j = i // block_size, j // block_size
    if query_is_noised:
        return i == j if key_is_noised else j < i
    if key_is_noised:
        return False
    both_in_prefix = i < prefix and j < prefix
    return j <= i or (pattern is AttentionPattern.TWO_STREAM_PREFIX and both_in_prefix)


@torch.no_grad()
def stepwise_log_p(
    logits: Callable[[Tensor, Tensor, Sees], Tensor],
    tokens: Tensor,
    order: Sequence[int],
    prefix: int,
    mask_id: int,
) -> Tensor:
    """log p [L] of the tokens of one row in the order they are written, a token at a time.

    Each sees what was written and itself; so many of those written, at most, see each other.
    logits: of one row, given (tokens, positions, rule).
    """
    found, places = [], torch.tensor(order)
    for i, place in enumerate(order):
        clean = min(i, prefix)

        def rule(q: int, k: int, clean: int = clean) -> bool:
            return k <= q or (q < clean and k < clean)

        fed = torch.cat([tokens[places[:i]], torch.tensor([mask_id])])
        found.append(logits(fed, places[: i + 1], rule)[i].log_softmax(0)[tokens[place]])
    return torch.stack(found)


@cache
def rotary_frequencies(config: ModelConfig, layer: int) -> tuple[Tensor, float]:
    """Those of a layer, float32 [K/2], and what cosines and sines are multiplied by."""
    bases = config.rope_bases or [config.rope_base]
    base = bases[layer % len(bases)]
    if config.rope_factor == 1:
        exponents = [torch.tensor(2.0 * k) / config.head_dim for k in range(config.head_dim // 2)]
        return torch.stack([1.0 / base**exponent for exponent in exponents]), 1.0
    rope = {
        "rope_type": "yarn", "rope_theta": base, "factor": config.rope_factor,
        "original_max_position_embeddings": config.rope_original_length,
    }  # fmt: skip
    like = LlamaConfig(
        hidden_size=config.hidden_size, num_attention_heads=config.num_heads, rope_parameters=rope
    )
    found: tuple[Tensor, float] = ROPE_INIT_FUNCTIONS["yarn"](like, torch.device("cpu"))
    return found


class ReferenceNetwork:
    """A plain transformer over the state of a `esolm.model.network.Network`; one row at a time."""

    def __init__(self, config: ModelConfig, state: dict[str, Tensor]) -> None:
        self.config = config
        self.state = state

    def all_logits(self, inputs: NetworkInput) -> Tensor:
        """[B, L, V], as `Network.all_logits` defines it."""
        seq_len = inputs.tokens.shape[1]
        length = seq_len // inputs.pattern.num_streams
        rows = []
        for row in range(len(inputs.tokens)):
            prefix = int(inputs.prefix_length[row])

            def rule(q: int, k: int, prefix: int = prefix) -> bool:
                return sees(inputs.pattern, q, k, length, prefix, inputs.block_size)

            rows.append(self.logits(inputs.tokens[row], inputs.positions[row], rule)[:length])
        return torch.stack(rows)

    def logits(self, tokens: Tensor, positions: Tensor, rule: Sees) -> Tensor:
        """[S, V] of one row."""
        state, config = self.state, self.config
        condition = self._condition()
        hidden = [state["embedding.tokens.weight"][int(token)] for token in tokens]
        for layer in range(config.num_layers):
            name = f"blocks.{layer}"
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self._modulation(name, condition)
            normal = [
                self._norm(h, f"{name}.norm1.weight") * (1 + scale_1) + shift_1 for h in hidden
            ]
            attended = self._attention(layer, normal, positions, rule)
            hidden = [h + gate_1 * a for h, a in zip(hidden, attended, strict=True)]
            normal = [
                self._norm(h, f"{name}.norm2.weight") * (1 + scale_2) + shift_2 for h in hidden
            ]
            hidden = [h + gate_2 * self._mlp(name, n) for h, n in zip(hidden, normal, strict=True)]
        shift, scale = self._modulation("head", condition)
        output = []
        for h in hidden:
            normal_h = self._norm(h, "head.norm.weight") * (1 + scale) + shift
            logits = self._linear("head.output", normal_h)[: config.vocab_size].clone()
            if config.logit_softcap:
                logits = (logits / config.logit_softcap).tanh() * config.logit_softcap
            logits[config.mask_id] = -math.inf
            output.append(logits)
        return torch.stack(output)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y = self.state[f"{name}.weight"] @ x
        bias = f"{name}.bias"
        return y + self.state[bias] if bias in self.state else y

    def _norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.norm == "layernorm":
            x = x - x.mean()
        return x / (x.square().mean() + self.config.norm_eps).sqrt() * self.state[name]

    def _condition(self) -> Tensor | None:
        """SiLU(MLP(timestep embedding of 0)); cosines come first."""
        if not self.config.adaln:
            return None
        features = torch.tensor([math.cos(0.0)] * 128 + [math.sin(0.0)] * 128, dtype=torch.float64)
        inner = F.silu(self._linear("embedding.conditioning.linear_in", features))
        return F.silu(self._linear("embedding.conditioning.linear_out", inner))

    def _modulation(self, name: str, condition: Tensor | None) -> tuple[Tensor, ...]:
        """(shift, scale[, gate]) once for a head, twice for a block."""
        if condition is None:
            zero, one = torch.zeros(()), torch.ones(())
            return (zero, zero) if name == "head" else (zero, zero, one, zero, zero, one)
        return self._linear(f"{name}.modulation", condition).chunk(2 if name == "head" else 6)

    def _rotate(self, x: Tensor, position: int, layer: int) -> Tensor:
        half, (frequencies, length) = len(x) // 2, rotary_frequencies(self.config, layer)
        out = x.clone()
        for k in range(half):
            # The network's angles are float32 by definition.
            angle = torch.tensor(float(position)) * frequencies[k]
            cos, sin = (angle.cos() * length).double(), (angle.sin() * length).double()
            out[k] = x[k] * cos - x[k + half] * sin
            out[k + half] = x[k + half] * cos + x[k] * sin
        return out

    def _attention(
        self, layer: int, hidden: list[Tensor], positions: Tensor, rule: Sees
    ) -> list[Tensor]:
        name, head_dim = f"blocks.{layer}", self.config.head_dim
        q_k_v = [[self._normed(name, *qkv) for qkv in self._heads(name, h)] for h in hidden]
        places = [int(position) for position in positions]
        outputs = []
        for i in range(len(hidden)):
            heads = []
            visible = [j for j in range(len(hidden)) if rule(i, j)]
            for head in range(self.config.num_heads):
                q = self._rotate(q_k_v[i][head][0], places[i], layer)
                keys = [self._rotate(q_k_v[j][head][1], places[j], layer) for j in visible]
                scores = torch.stack([q @ k for k in keys]) / math.sqrt(head_dim)
                values = torch.stack([q_k_v[j][head][2] for j in visible])
                heads.append(scores.softmax(0) @ values)
            outputs.append(self._linear(f"{name}.attention.out", torch.cat(heads)))
        return outputs

    def _heads(self, name: str, hidden: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(q, k, v) of each head; where heads share them, the same k and v for neighbours."""
        heads, groups = self.config.num_heads, self.config.num_kv_heads
        if not groups:
            rows = self._linear(f"{name}.attention.qkv", hidden).view(heads, 3, -1)
            return [(row[0], row[1], row[2]) for row in rows]
        q = (self.state[f"{name}.attention.qkv.q"] @ hidden).view(heads, -1)
        kv = (self.state[f"{name}.attention.qkv.kv"] @ hidden).view(groups, 2, -1)
        group_of = [group for group in range(groups) for _ in range(heads // groups)]
        return [(q[head], *kv[group]) for head, group in enumerate(group_of)]

    def _normed(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.config.qk_norm:
            return q, k, v
        norms = (f"{name}.attention.{part}_norm.weight" for part in "qk")
        return self._norm(q, next(norms)), self._norm(k, next(norms)), v

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        up = self._linear(f"{name}.mlp.up", x)
        if self.config.activation == "swiglu":
            return self._linear(f"{name}.mlp.down", F.silu(up[0::2]) * up[1::2])
        cubic = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
        return self._linear(f"{name}.mlp.down", 0.5 * up * (1 + cubic.tanh()))
