"""Makes bundle parameters of training tensors and folds the constant modulation of adaLN away.

The conditioning vector is constant (sigma = 0). So shift and scale become the bias and weight of
the norm that they follow, and a gate scales the rows of the output projection in front of it:

    norm(x) w (1 + scale) + shift        ->  weight = w (1 + scale), bias = shift
    gate (W h + b)                       ->  weight = gate W, bias = gate b

Everything is computed in float64 and rounded once.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.model.layers import Conditioning
from esolm.model.tensors import network_tensors
from esolm.pipeline.errors import ExportError
from esolm.pipeline.export.architecture import bundle_name, is_folded_away


class Ledger:
    """Keeps account of the tensors that are still to be consumed, each exactly once."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self._tensors, self._left, self._dtype = tensors, set(tensors), dtype

    def take(self, name: str, *shape: int) -> Tensor:
        """Consumes a tensor and returns it in the ledger's type.

        Raises ExportError if it is missing, misshapen or not finite.
        """
        if name not in self._left:
            raise ExportError(f"coverage: the checkpoint has no tensor '{name}'")
        self._left.remove(name)
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise ExportError(
                f"coverage: '{name}' has shape {list(tensor.shape)}, the architecture {list(shape)}"
            )
        # By these two, because a mask of all numbers takes more memory than the numbers.
        if not torch.stack(tensor.aminmax()).isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ExportError(f"coverage: '{name}' holds {bad} values that are NaN or infinite")
        return tensor.to(self._dtype)

    def close(self) -> None:
        """Raises ExportError if a tensor was not consumed."""
        if self._left:
            names = ", ".join(sorted(self._left)[:5])
            raise ExportError(f"coverage: {len(self._left)} tensors have no place: {names}")


def fold(
    tensors: dict[str, Tensor], config: ModelConfig, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Returns the parameters of the bundle by name, in `dtype`.

    Raises ExportError unless every tensor is finite, fits the architecture and is used once.
    """
    ledger = Ledger(tensors)
    held = {
        name: ledger.take(name, *tensor.shape) for name, tensor in network_tensors(config).items()
    }
    ledger.close()
    folded = {bundle_name(name): value for name, value in held.items() if not is_folded_away(name)}
    if config.adaln:
        conditioning = _conditioning(held, config)
        for layer in range(config.num_layers):
            folded |= _fold_block(held, f"blocks.{layer}", config, conditioning)
        shift, scale = _modulation(held, "head", conditioning, 2)
        folded |= _fold_norm(held, "head.norm", shift, scale)
    return {name: tensor.to(dtype).contiguous() for name, tensor in folded.items()}


def _conditioning(held: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Returns the conditioning vector [C] of `model.layers.Conditioning`, computed in float64."""
    prefix = "embedding.conditioning."
    state = {n.removeprefix(prefix): value for n, value in held.items() if n.startswith(prefix)}
    module = Conditioning(config.cond_dim).double()
    module.load_state_dict(state)
    with torch.no_grad():
        vector: Tensor = module()
    return vector


def _modulation(
    held: dict[str, Tensor], layer: str, conditioning: Tensor, parts: int
) -> list[Tensor]:
    """Returns the vectors [D] that the modulation of a layer makes of the conditioning."""
    weight, bias = (held[f"{layer}.modulation.{kind}"] for kind in ("weight", "bias"))
    return list(F.linear(conditioning, weight, bias).chunk(parts))


def _fold_norm(
    held: dict[str, Tensor], name: str, shift: Tensor, scale: Tensor
) -> dict[str, Tensor]:
    weight = held[f"{name}.weight"] * (1 + scale)
    return {bundle_name(f"{name}.weight"): weight, bundle_name(f"{name}.bias"): shift}


def _fold_block(
    held: dict[str, Tensor], name: str, config: ModelConfig, conditioning: Tensor
) -> dict[str, Tensor]:
    """Returns what modulation changes in a block: the norms, and the outputs that gates scale."""
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = _modulation(held, name, conditioning, 6)
    gates = {"attention.out.weight": gate_1, "mlp.down.weight": gate_2}
    if config.mlp_bias:
        gates["mlp.down.bias"] = gate_2
    return {
        **_fold_norm(held, f"{name}.norm1", shift_1, scale_1),
        **_fold_norm(held, f"{name}.norm2", shift_2, scale_2),
        **{
            bundle_name(f"{name}.{output}"): _gated(held[f"{name}.{output}"], gate)
            for output, gate in gates.items()
        },
    }


def _gated(tensor: Tensor, gate: Tensor) -> Tensor:
    """Multiplies the rows of a weight, or a bias, by the gate [D] of their output."""
    return tensor * (gate[:, None] if tensor.dim() == 2 else gate)
