"""How a parameter is split over the tensor-parallel ranks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from esolm.model.tensors import TensorSpec


def mark_split(layer: nn.Module, tensors: Iterable[TensorSpec]) -> None:
    """Marks the parameters of a layer that are split, according to the table of its tensors.

    The gradient norm reads these attributes. megatron-core sets them only when it initialises a
    weight itself, which it does not do here (see `esolm.model.initialize`).
    """
    for tensor in tensors:
        if tensor.split is not None:
            parameter = layer.get_parameter(tensor.name)
            parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
            parameter.partition_dim = tensor.split  # type: ignore[attr-defined]


def is_sharded(parameter: Tensor) -> bool:
    """Whether the parameter is split over the tensor-parallel ranks."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def local_part(full: Tensor, tensor: TensorSpec, tensor_rank: int, tensor_size: int) -> Tensor:
    """Returns this rank's slice of a full tensor; rows that pad the vocabulary are zero.

    It is a view of the full tensor, unless it is padded.
    """
    dim = tensor.split
    if dim is None:
        return full
    size = -(-full.shape[dim] // tensor_size)
    start = min(tensor_rank * size, full.shape[dim])
    part = full.narrow(dim, start, min(size, full.shape[dim] - start))
    missing = size - part.shape[dim]
    if not missing:
        return part
    padding = list(full.shape)
    padding[dim] = missing
    return torch.cat([part, full.new_zeros(padding)], dim=dim)
