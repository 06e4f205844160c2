"""The fold against a network written out in float64, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.pipeline.errors import ExportError
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.writer import bundle_config, load_model
from tests.model.reference import rotary_frequencies


class Unfolded:
    """The training network in float64 straight from its tensors, causal, without any folding."""

    def __init__(self, tensors: dict[str, Tensor], config: ModelConfig) -> None:
        self.t = {name: tensor.double() for name, tensor in tensors.items()}
        if config.tied_embeddings:
            self.t["head.output.weight"] = self.t["embedding.tokens.weight"]
        self.config = config

    def condition(self) -> Tensor:
        features = torch.cat([torch.ones(128), torch.zeros(128)]).double()
        c = F.silu(self._linear("embedding.conditioning.linear_in", features))
        return F.silu(self._linear("embedding.conditioning.linear_out", c))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        size, eps = self.t[f"{name}.weight"].shape, self.config.norm_eps
        function = F.layer_norm if self.config.norm == "layernorm" else F.rms_norm
        return function(x, size, eps=eps) * self.t[f"{name}.weight"]

    def _modulation(self, name: str, parts: int) -> list[Any]:
        if not self.config.adaln:
            return [0.0, 0.0, 1.0] * (parts // 3) or [0.0, 0.0]
        return list(self._linear(f"{name}.modulation", self.condition()).chunk(parts))

    def _attention(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        width, name = self.config.head_dim, f"blocks.{layer}.attention"
        heads = list(self._heads(name, x))
        if self.config.qk_norm:
            heads[:2] = [
                self._norm(f"{name}.{p}_norm", h) for p, h in zip("qk", heads, strict=False)
            ]
        frequencies, length = rotary_frequencies(self.config, layer)
        angles = positions.float()[..., None] * frequencies
        cos, sin = ((part * length).double() for part in (angles.cos(), angles.sin()))
        turn = torch.complex(cos, sin)[:, :, None]
        q, k = (
            torch.view_as_real(torch.complex(*part.chunk(2, -1)) * turn)
            .transpose(-1, -2)
            .flatten(-2)
            for part in heads[:2]
        )
        scores = torch.einsum("bqhk,bjhk->bhqj", q, k) / width**0.5
        hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out = torch.einsum("bhqj,bjhk->bqhk", weights, heads[2]).flatten(2)
        return self._linear(f"{name}.out", out)

    def _heads(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, [B, S, H, K] each."""
        heads, shared = self.config.num_heads, self.config.num_kv_heads
        if not shared:
            return self._linear(f"{name}.qkv", x).view(*x.shape[:2], heads, 3, -1).unbind(3)
        q = F.linear(x, self.t[f"{name}.qkv.q"]).view(*x.shape[:2], heads, -1)
        kv = F.linear(x, self.t[f"{name}.qkv.kv"]).view(*x.shape[:2], shared, 2, -1)
        return q, *(part.repeat_interleave(heads // shared, dim=2) for part in kv.unbind(3))

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        up = self._linear(f"{name}.up", x)
        if self.config.activation == "swiglu":
            return self._linear(f"{name}.down", F.silu(up[..., 0::2]) * up[..., 1::2])
        return self._linear(f"{name}.down", F.gelu(up, approximate="tanh"))

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.t["embedding.tokens.weight"][tokens]
        for layer in range(self.config.num_layers):
            name = f"blocks.{layer}"
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self._modulation(name, 6)
            normed = self._norm(f"{name}.norm1", x) * (1 + scale_1) + shift_1
            x = x + gate_1 * self._attention(layer, normed, positions)
            normed = self._norm(f"{name}.norm2", x) * (1 + scale_2) + shift_2
            x = x + gate_2 * self._mlp(f"{name}.mlp", normed)
        shift, scale = self._modulation("head", 2)
        logits = self._linear("head.output", self._norm("head.norm", x) * (1 + scale) + shift)
        if self.config.logit_softcap:
            logits = torch.tanh(logits / self.config.logit_softcap) * self.config.logit_softcap
        logits[..., self.config.mask_id] = -torch.inf
        return logits


def test_fold_is_exact_in_float64(source: Any) -> None:
    tensors = source.tensors("ema")
    tokens = torch.randint(source.model.vocab_size, (2, 11), generator=torch.Generator())
    positions = torch.stack([torch.randperm(11), torch.randperm(11)])
    expected = Unfolded(tensors, source.model)(tokens, positions)
    bundle = load_model(bundle_config(source, None), fold(tensors, source.model, torch.float64))
    with torch.no_grad():
        logits = bundle(tokens, positions).logits
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)


def test_rounds_once(paper_source: Any) -> None:
    exact = fold(paper_source.tensors("ema"), paper_source.model, torch.float64)
    stored = fold(paper_source.tensors("ema"), paper_source.model, torch.bfloat16)
    assert all(torch.equal(stored[name], exact[name].bfloat16()) for name in exact)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("blocks.1.mlp.up.weight"), "no tensor 'blocks.1.mlp.up.weight'"),
        (lambda t: t.update(extra=torch.ones(1)), "1 tensors have no place: extra"),
        (lambda t: t["head.norm.weight"].__setitem__(3, torch.nan), "'head.norm.weight' holds 1"),
        (lambda t: t["head.norm.weight"].__setitem__(3, torch.inf), "'head.norm.weight' holds 1"),
        (
            lambda t: t.update({"embedding.tokens.weight": torch.zeros(424, 32)}),
            r"'embedding.tokens.weight' has shape \[424, 32\]",
        ),
    ],
)
def test_refuses_tensors_that_do_not_fit(modern_source: Any, damage: Any, message: str) -> None:
    tensors = modern_source.tensors("ema")
    damage(tensors)
    with pytest.raises(ExportError, match=message):
        fold(tensors, modern_source.model)
