"""Training tensors -> bundle parameters, with the constant modulation of adaLN folded away.

The conditioning vector is constant (sigma = 0), so shift and scale become the bias and weight of
the norm that they follow, and a gate scales the rows of the output projection in front of it:

    norm(x) w (1 + scale) + shift        ->  weight = w (1 + scale), bias = shift
    gate (W h + b)                       ->  weight = gate W, bias = gate b

Everything is computed in float64 and rounded once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.layers import Conditioning
from pipeline.errors import ExportError


class Ledger:
    """Training tensors that are still to be consumed, each exactly once."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._left = dict(tensors)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor in float64. Raises ExportError if it is missing, misshapen or not finite."""
        if name not in self._left:
            raise ExportError(f"coverage: the checkpoint has no tensor '{name}'")
        tensor = self._left.pop(name)
        if tuple(tensor.shape) != shape:
            raise ExportError(
                f"coverage: '{name}' has shape {list(tensor.shape)}, the architecture {list(shape)}"
            )
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise ExportError(f"coverage: '{name}' holds {bad} values that are NaN or infinite")
        return tensor.double()

    def close(self) -> None:
        """Raises ExportError if a tensor was not consumed."""
        if self._left:
            names = ", ".join(sorted(self._left)[:5])
            raise ExportError(f"coverage: {len(self._left)} tensors have no place: {names}")


def fold(
    tensors: dict[str, Tensor], config: ModelConfig, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Bundle parameters by name, in `dtype`.

    Raises ExportError unless every tensor is finite, fits the architecture and is used once.
    """
    ledger = Ledger(tensors)
    size, vocab = config.hidden_size, config.vocab_size
    folded = {"model.embed_tokens.weight": ledger.take("embedding.tokens.weight", vocab, size)}
    conditioning = _conditioning(ledger, config)
    for layer in range(config.num_layers):
        block = _fold_block(ledger, f"blocks.{layer}", config, conditioning)
        folded |= {f"model.layers.{layer}.{name}": value for name, value in block.items()}
    modulation = _modulation(ledger, "head.modulation", config, conditioning, 2)
    norm = _fold_norm(ledger, "head.norm", size, *modulation)
    folded |= {f"model.norm.{name}": value for name, value in norm.items()}
    if not config.tied_embeddings:
        folded["lm_head.weight"] = ledger.take("head.output.weight", vocab, size)
    if config.output_bias:
        folded["lm_head.bias"] = ledger.take("head.output.bias", vocab)
    ledger.close()
    return {name: tensor.to(dtype).contiguous() for name, tensor in folded.items()}


def _conditioning(ledger: Ledger, config: ModelConfig) -> Tensor | None:
    """[C], as `model.layers.Conditioning` computes it, in float64."""
    if not config.adaln:
        return None
    module, prefix = Conditioning(config.cond_dim), "embedding.conditioning"
    state = {
        name: ledger.take(f"{prefix}.{name}", *parameter.shape)
        for name, parameter in module.named_parameters()
    }
    module.double().load_state_dict(state)
    with torch.no_grad():
        vector: Tensor = module()
    return vector


def _modulation(
    ledger: Ledger, name: str, config: ModelConfig, conditioning: Tensor | None, parts: int
) -> list[Tensor | None]:
    """The vectors [D] of a modulation, or Nones without adaLN."""
    if conditioning is None:
        return [None] * parts
    width = parts * config.hidden_size
    weight = ledger.take(f"{name}.weight", width, config.cond_dim)
    bias = ledger.take(f"{name}.bias", width)
    return list(F.linear(conditioning, weight, bias).chunk(parts))


def _fold_norm(
    ledger: Ledger, name: str, size: int, shift: Tensor | None, scale: Tensor | None
) -> dict[str, Tensor]:
    weight = ledger.take(f"{name}.weight", size)
    if shift is None or scale is None:
        return {"weight": weight}
    return {"weight": weight * (1 + scale), "bias": shift}


def _fold_block(
    ledger: Ledger, name: str, config: ModelConfig, conditioning: Tensor | None
) -> dict[str, Tensor]:
    size, inner = config.hidden_size, config.ffn_hidden_size
    up = inner * (2 if config.activation == "swiglu" else 1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = _modulation(
        ledger, f"{name}.modulation", config, conditioning, 6
    )
    norm1 = _fold_norm(ledger, f"{name}.norm1", size, shift_1, scale_1)
    norm2 = _fold_norm(ledger, f"{name}.norm2", size, shift_2, scale_2)
    out = ledger.take(f"{name}.attention.out.weight", size, size)
    down = ledger.take(f"{name}.mlp.down.weight", size, inner)
    block = {f"norm1.{key}": value for key, value in norm1.items()}
    block |= {f"norm2.{key}": value for key, value in norm2.items()}
    block["attention.qkv.weight"] = ledger.take(f"{name}.attention.qkv.weight", 3 * size, size)
    block["attention.out.weight"] = _gated(out, gate_1)
    block["mlp.up.weight"] = ledger.take(f"{name}.mlp.up.weight", up, size)
    block["mlp.down.weight"] = _gated(down, gate_2)
    if config.mlp_bias:
        block["mlp.up.bias"] = ledger.take(f"{name}.mlp.up.bias", up)
        block["mlp.down.bias"] = _gated(ledger.take(f"{name}.mlp.down.bias", size), gate_2)
    return block


def _gated(tensor: Tensor, gate: Tensor | None) -> Tensor:
    """Rows of a weight, or a bias, times the gate [D] of their output."""
    if gate is None:
        return tensor
    return tensor * (gate[:, None] if tensor.dim() == 2 else gate)
