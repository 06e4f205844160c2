"""How a parameter is split over the tensor-parallel ranks."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from esolm.model.tensors import TensorSpec


def mark_split(layer: nn.Module, tensors: Iterable[TensorSpec], tensor_parallel_size: int) -> None:
    """Marks the parameters of a layer that are split, according to the table of its tensors.

    Those that are whole but have partial gradients are marked as well. The gradient norm reads
    these attributes. megatron-core sets them only when it initialises a weight itself, which it
    does not do here (see `esolm.model.initialize`).
    """
    for tensor in tensors:
        dim = tensor.split_over(tensor_parallel_size)
        parameter: Any = layer.get_parameter(tensor.name)
        if dim is not None:
            parameter.tensor_model_parallel = True
            parameter.partition_dim = dim
        parameter.has_partial_gradient = tensor.is_partial(tensor_parallel_size)


def is_sharded(parameter: Tensor) -> bool:
    """Whether the parameter is split over the tensor-parallel ranks."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def has_partial_gradient(parameter: Tensor) -> bool:
    """Whether each tensor-parallel rank holds it whole but has only a part of its gradient."""
    return bool(getattr(parameter, "has_partial_gradient", False))


def local_part(full: Tensor, tensor: TensorSpec, tensor_rank: int, tensor_size: int) -> Tensor:
    """Returns this rank's slice of a full tensor; rows that pad the vocabulary are zero.

    It is a view of the full tensor, unless it is padded.
    """
    dim = tensor.split_over(tensor_size)
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
