"""Makes training tensors of bundle parameters: the inverse of `esolm.pipeline.export.fold`.

The folded scales and gates of adaLN stay in the weights, and the modulations are constant at first:
their matrix is zero, and their bias is the shift, a scale of 0 and a gate of 1. The network then
computes exactly what the bundle computes, and every part of it can be trained. The conditioning
itself is not in a bundle; because of the zero matrix its values do not matter at the start.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.model.tensors import network_tensors
from esolm.pipeline.export.architecture import bundle_name, is_folded_away
from esolm.pipeline.export.fold import Ledger


def unfold(parameters: Mapping[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields (canonical name, tensor in fp32) of all training tensors but the conditioning's.

    Each parameter is read when its turn comes, so that no more than one is held. config.adaln must
    be true exactly if the norms of the bundle have biases. Raises ExportError unless every
    parameter has its place and its shape; what has no place is found at the end.
    """
    ledger = Ledger(parameters, torch.float32)
    for name, tensor in network_tensors(config).items():
        if not is_folded_away(name):
            yield name, ledger.take(bundle_name(name), *tensor.shape)
    if config.adaln:
        for layer in range(config.num_layers):
            name = f"blocks.{layer}"
            shift_1, shift_2 = (_shift(ledger, f"{name}.norm{i}", config) for i in (1, 2))
            zero, one = torch.zeros_like(shift_1), torch.ones_like(shift_1)
            parts = [shift_1, zero, one, shift_2, zero, one]
            yield from _modulation(f"{name}.modulation", parts, config)
        shift = _shift(ledger, "head.norm", config)
        yield from _modulation("head.modulation", [shift, torch.zeros_like(shift)], config)
    ledger.close()


def _shift(ledger: Ledger, norm: str, config: ModelConfig) -> Tensor:
    """Takes the bias of a norm of the bundle, which is the shift of its modulation."""
    return ledger.take(bundle_name(f"{norm}.bias"), config.hidden_size)


def _modulation(
    name: str, parts: list[Tensor], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    bias = torch.cat(parts)
    yield f"{name}.weight", torch.zeros(len(bias), config.cond_dim)
    yield f"{name}.bias", bias
