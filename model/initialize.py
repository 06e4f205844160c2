"""Initial weights as a function of (seed, parameter name): the same under every layout.

Each full, unpadded tensor is drawn from its own generator and the local part is cut out of it, so
neither the tensor-parallel degree, nor the padding, nor the order of construction matters.
"""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.sharding import full_shape, local_part

# Written into the residual stream, so scaled down with depth.
RESIDUAL_OUTPUTS = ("attention.out.weight", "mlp.down.weight")


def initialize(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: ModelConfig,
    seed: int,
    tensor_rank: int,
    tensor_size: int,
) -> None:
    """Fills the parameters of this rank in place.

    parameters: (canonical name, local parameter). Biases and modulations start at zero, norms at
    one, the output layer at zero with adaLN (so that the first loss is exactly log V).
    """
    for name, parameter in parameters:
        local = local_part(
            _draw(name, full_shape(name, parameter, config, tensor_size), config, seed),
            parameter,
            tensor_rank,
            tensor_size,
        )
        with torch.no_grad():
            parameter.copy_(local)


def _draw(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    if "norm" in name:
        return torch.ones(shape)
    if name.endswith("bias") or "modulation" in name or (config.adaln and "head.output" in name):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    std = config.init_std
    if name.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * config.num_layers)  # GPT-2
    return torch.randn(shape, generator=generator) * std
