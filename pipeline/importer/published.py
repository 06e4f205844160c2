"""The published network: the names, order and shapes of its tensors, and their names here."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.model.tensors import network_tensors
from esolm.pipeline.errors import ImportCheckpointError

PREFIX = "backbone."
COMPILED = "_orig_mod."
ROTARY = "backbone.rotary_emb.inv_freq"
# The buffers of BD3-LM that hold the range from which t is drawn.
CLIPS = ("sampling_eps_min", "sampling_eps_max")
ROPE_BASE = 10000.0

# The published names of modules and those of this repository, in the order of registration.
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
    """A parameter. published: its published name. name: its name here. shape: the same in both."""

    published: str
    name: str
    shape: tuple[int, ...]


def clean_key(key: str) -> str:
    """Returns a key of the state dict without what torch.compile puts into it."""
    return key.replace(COMPILED, "")


def parameters(model: ModelConfig) -> list[Parameter]:
    """Returns every parameter in the order of registration, that of EMA and optimizer as well."""
    tensors = network_tensors(model)
    found = []

    def add(published: str, name: str) -> None:
        """Adds the weight of a module, and its bias if any; the embedding is a parameter itself."""
        if name in tensors:
            found.append(Parameter(PREFIX + published, name, tensors[name].shape))
        for kind in ("weight", "bias"):
            if (full := f"{name}.{kind}") in tensors:
                found.append(Parameter(f"{PREFIX}{published}.{kind}", full, tensors[full].shape))

    for published, name in SAME.items():
        if name == "head.norm":  # the blocks come before it
            for layer in range(model.num_layers):
                for part, here in SAME_IN_BLOCK.items():
                    add(f"blocks.{layer}.{part}", f"blocks.{layer}.{here}")
        add(published, name)
    return found


def to_here(parameter: Parameter, value: Tensor, model: ModelConfig) -> Tensor:
    """Returns the value of a parameter, its moment or its average in the layout used here, in fp32.

    The rows of the published qkv weight are laid out as [(q, k, v), head, dim], and here as [head,
    (q, k, v), dim]. All else is the same.
    """
    value = value.float()
    if not parameter.name.endswith("attention.qkv.weight"):
        return value
    rows = value.view(3, model.num_heads, model.head_dim, model.hidden_size)
    return rows.transpose(0, 1).reshape(value.shape)


def architecture(
    shapes: dict[str, tuple[int, ...]], num_heads: int, mask_id: int, rope_base: float
) -> ModelConfig:
    """Returns the network that tensors of these shapes make up.

    shapes: by key, as `clean_key` returns it. Raises ImportCheckpointError, which names what is
    missing. Shapes that do not fit each other are found when the tensors are compared with the
    `parameters` of the result.
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
    """Returns the base of the rotary frequencies base^(-2i / K), i = 0 .. K/2 - 1.

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
