"""How a parameter is split over the tensor-parallel ranks."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig


def sharded(module: nn.Module, partition_dim: int) -> nn.Module:
    """Marks a tensor-parallel module's weight as such.

    The gradient norm and the checkpoints read these attributes; megatron-core sets them only when
    it initialises the weight itself, which it does not here (see `model.initialize`).
    """
    weight = module.weight
    weight.tensor_model_parallel = True  # type: ignore[union-attr]
    weight.partition_dim = partition_dim  # type: ignore[union-attr]
    return module


# The two places of the one weight of tied embeddings; it goes by the first name.
TIED_WEIGHT, TIED_COPY = "embedding.tokens.weight", "head.output.weight"


def is_sharded(parameter: Tensor) -> bool:
    """Whether the parameter is split over the tensor-parallel ranks."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def has_vocab_rows(name: str) -> bool:
    """Whether the first dimension of the parameter is the (padded) vocabulary."""
    return name.startswith(("embedding.tokens.", "head.output."))


def full_shape(
    name: str,
    parameter: Tensor,
    config: ModelConfig,
    tensor_size: int,
    local: torch.Size | None = None,
) -> tuple[int, ...]:
    """The shape over all tensor-parallel ranks, vocabulary padding stripped."""
    shape = list(local if local is not None else parameter.shape)
    if is_sharded(parameter):
        shape[parameter.partition_dim] *= tensor_size  # type: ignore[attr-defined]
    if has_vocab_rows(name):
        shape[0] = config.vocab_size
    return tuple(shape)


def local_part(full: Tensor, parameter: Tensor, tensor_rank: int, tensor_size: int) -> Tensor:
    """This rank's slice of a full tensor; rows that pad the vocabulary are zero."""
    if not is_sharded(parameter):
        return full
    dim: int = parameter.partition_dim  # type: ignore[attr-defined]
    size = parameter.shape[dim]
    missing = size * tensor_size - full.shape[dim]
    if missing:
        padding = list(full.shape)
        padding[dim] = missing
        full = torch.cat([full, full.new_zeros(padding)], dim=dim)
    return full.narrow(dim, tensor_rank * size, size)
