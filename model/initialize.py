"""Initial weights as a function of (seed, tensor name): the same under every layout.

Each full, unpadded tensor is drawn from a generator of its own, and the local part is cut out of
it. So neither the tensor-parallel degree, nor the padding, nor the order of construction matters.
"""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from esolm.model.config import ModelConfig
from esolm.model.sharding import local_part
from esolm.model.tensors import InitialValues, TensorSpec, network_tensors


def initialize(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: ModelConfig,
    seed: int,
    tensor_rank: int,
    tensor_size: int,
) -> None:
    """Fills the parameters of this rank in place, each as its entry in `esolm.model.tensors` says.

    parameters: pairs of a canonical name and the local parameter.
    """
    for name, parameter in parameters:
        with torch.no_grad():
            parameter.copy_(initial_values(name, config, seed, tensor_rank, tensor_size))


def initial_values(
    name: str, config: ModelConfig, seed: int, tensor_rank: int, tensor_size: int
) -> Tensor:
    """Returns this rank's part of the initial values of one tensor, in fp32 on the CPU.

    Apart from the part at most the full tensor is held, of which the part may be a view.
    """
    tensor = network_tensors(config)[name]
    return local_part(_draw(tensor, config, seed), tensor, tensor_rank, tensor_size)


def _draw(tensor: TensorSpec, config: ModelConfig, seed: int) -> Tensor:
    if tensor.start is InitialValues.ONES:
        return torch.ones(tensor.shape)
    if tensor.start is InitialValues.ZEROS:
        return torch.zeros(tensor.shape)
    digest = hashlib.sha256(f"{seed}/{tensor.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    std = config.init_std
    if tensor.start is InitialValues.RESIDUAL:
        std /= math.sqrt(2 * config.num_layers)  # GPT-2
    return torch.randn(tensor.shape, generator=generator).mul_(std)
