"""The published network: names, order and shapes of its tensors, and what they are called here."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.layers import Conditioning
from pipeline.errors import ImportCheckpointError

PREFIX = "backbone."
COMPILED = "_orig_mod."
ROTARY = "backbone.rotary_emb.inv_freq"
# Buffers of BD3-LM: the range that t is drawn from.
CLIPS = ("sampling_eps_min", "sampling_eps_max")
ROPE_BASE = 10000.0

# The same architecture in the terms of this repository.
SAME = {
    "vocab_embed.embedding": "embedding.tokens.weight",
    "sigma_map.mlp.0": "embedding.conditioning.linear_in",
    "sigma_map.mlp.2": "embedding.conditioning.linear_out",
    "output_layer.norm_final": "head.norm",
    "output_layer.linear": "head.output",
    "output_layer.adaLN_modulation": "head.modulation",
}
SAME_IN_BLOCK = {
    "norm1": "norm1",
    "attn_qkv": "attention.qkv",
    "attn_out": "attention.out",
    "norm2": "norm2",
    "mlp.0": "mlp.up",
    "mlp.2": "mlp.down",
    "adaLN_modulation": "modulation",
}


@dataclass(frozen=True)
class Parameter:
    """published: its name there. name: here. shape: the same in both."""

    published: str
    name: str
    shape: tuple[int, ...]


def clean_key(key: str) -> str:
    """A key of the state dict without what torch.compile puts into it."""
    return key.replace(COMPILED, "")


def parameters(model: ModelConfig) -> list[Parameter]:
    """Every parameter in the order of registration, which is the order of EMA and optimizer."""
    size, vocab, cond = model.hidden_size, model.vocab_size, model.cond_dim
    found = [Parameter("vocab_embed.embedding", SAME["vocab_embed.embedding"], (vocab, size))]

    def add(published: str, name: str, *shape: int, bias: bool = True) -> None:
        found.append(Parameter(f"{published}.weight", f"{name}.weight", shape))
        if bias:
            found.append(Parameter(f"{published}.bias", f"{name}.bias", shape[:1]))

    if model.adaln:
        add("sigma_map.mlp.0", SAME["sigma_map.mlp.0"], cond, Conditioning.num_features)
        add("sigma_map.mlp.2", SAME["sigma_map.mlp.2"], cond, cond)
    for layer in range(model.num_layers):
        _add_block(add, layer, model)
    add("output_layer.norm_final", SAME["output_layer.norm_final"], size, bias=False)
    add("output_layer.linear", SAME["output_layer.linear"], vocab, size)
    if model.adaln:
        add("output_layer.adaLN_modulation", SAME["output_layer.adaLN_modulation"], 2 * size, cond)
    return [Parameter(PREFIX + p.published, p.name, p.shape) for p in found]


def _add_block(add: Callable[..., None], layer: int, model: ModelConfig) -> None:
    size, inner = model.hidden_size, model.ffn_hidden_size
    shapes = {
        "norm1": (size,),
        "attn_qkv": (3 * size, size),
        "attn_out": (size, size),
        "norm2": (size,),
        "mlp.0": (inner, size),
        "mlp.2": (size, inner),
        "adaLN_modulation": (6 * size, model.cond_dim),
    }
    for part, shape in shapes.items():
        if part != "adaLN_modulation" or model.adaln:
            has_bias = part in ("mlp.0", "mlp.2", "adaLN_modulation")
            name = f"blocks.{layer}.{SAME_IN_BLOCK[part]}"
            add(f"blocks.{layer}.{part}", name, *shape, bias=has_bias)


def to_here(parameter: Parameter, value: Tensor, model: ModelConfig) -> Tensor:
    """The value in the layout of this repository, fp32; also of a moment or an average.

    Rows of the published qkv weight are laid out [(q, k, v), head, dim], here [head, (q, k, v),
    dim]. All else is the same.
    """
    value = value.float()
    if not parameter.name.endswith("attention.qkv.weight"):
        return value
    rows = value.view(3, model.num_heads, model.head_dim, model.hidden_size)
    return rows.transpose(0, 1).reshape(value.shape)


def architecture(
    shapes: dict[str, tuple[int, ...]], num_heads: int, mask_id: int, rope_base: float
) -> ModelConfig:
    """The network that tensors of these shapes make up, keys cleaned.

    Raises ImportCheckpointError naming what is missing. Shapes that do not fit each other are found
    when the tensors are compared with `parameters` of the result.
    """

    def dimension(key: str, axis: int = 0) -> int:
        shape = shapes.get(PREFIX + key)
        if shape is None or len(shape) <= axis:
            raise ImportCheckpointError(
                f"its state_dict has no '{PREFIX}{key}' of the right rank: it is not a published "
                "Eso-LM, AR, MDLM or BD3-LM network"
            )
        return shape[axis]

    block = f"{PREFIX}blocks."
    layers = {key.removeprefix(block).partition(".")[0] for key in shapes if key.startswith(block)}
    adaln = any(key.startswith(f"{PREFIX}sigma_map.") for key in shapes)
    model = ModelConfig(
        vocab_size=dimension("vocab_embed.embedding"),
        mask_id=mask_id,
        hidden_size=dimension("vocab_embed.embedding", 1),
        num_layers=len(layers),
        num_heads=num_heads,
        ffn_hidden_size=dimension("blocks.0.mlp.0.weight"),
        adaln=adaln,
        rope_base=rope_base,
        cond_dim=dimension("sigma_map.mlp.0.weight") if adaln else ModelConfig.cond_dim,
    )
    if problems := model.problems():
        raise ImportCheckpointError("its network is impossible: " + "; ".join(problems))
    return model


def rope_base_of(inv_freq: Tensor) -> float:
    """The base of rotary frequencies base^(-2i / K), i = 0 .. K/2 - 1.

    Raises ImportCheckpointError for other frequencies.
    """
    count = len(inv_freq)
    base = ROPE_BASE
    if count > 1 and 0 < float(inv_freq[-1]) < 1:
        measured = math.exp(-math.log(float(inv_freq[-1])) * count / (count - 1))
        base = ROPE_BASE if abs(measured / ROPE_BASE - 1) < 1e-3 else measured
    expected = base ** (-torch.arange(count, dtype=torch.float64) / count)
    if not torch.allclose(inv_freq.double(), expected, rtol=1e-3, atol=0.0):
        raise ImportCheckpointError(f"its '{ROTARY}' holds no rotary frequencies")
    return base
