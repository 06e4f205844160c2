"""Counts what a rank holds of the network, from the table of its tensors alone.

Building the network, even on the meta device, needs process groups; a plan works without them.
"""

from dataclasses import dataclass
from functools import lru_cache

from esolm.model.config import ModelConfig
from esolm.model.tensors import block_tensors, embedding_tensors, head_tensors, layer_tensors

PARTS = ("embedding", "attention", "feed-forward", "norms and adaLN", "output layer")

PERSISTENT_PARAMETER = 100_000
"""ZeRO-3 keeps parameters of up to so many elements whole on every rank (DeepSpeed's default)."""


@dataclass(frozen=True)
class Size:
    """The numbers of elements that a rank holds of some layers."""

    parameters: int
    persistent: int
    """The elements in parameters that are small enough for ZeRO-3 to keep whole."""
    largest: int
    """The elements in the largest parameter."""


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Counts the parameters of the whole network by `PARTS`, with the vocabulary unpadded."""
    counts = dict.fromkeys(PARTS, 0)
    counts["embedding"] = sum(shape.numel for shape in embedding_tensors(model))
    counts["output layer"] = sum(shape.numel for shape in head_tensors(model))
    for shape in block_tensors(model):
        kinds = {"attention": "attention", "mlp": "feed-forward"}
        part = kinds.get(shape.name.split(".")[0], "norms and adaLN")
        counts[part] += model.num_layers * shape.numel
    return counts


@lru_cache(maxsize=4096)
def stage_size(model: ModelConfig, first: int, end: int, tp: int) -> Size:
    """Counts what one tensor-parallel rank holds of the pipeline layers [first, end).

    With tied embeddings, a last stage that is not also the first holds a copy of the weight.
    """
    layers = range(first, end)
    sizes = [tensor.local(tp) for layer in layers for tensor in layer_tensors(model, layer)]
    if model.tied_embeddings and 0 < first < end == model.num_layers + 2:
        sizes.append(embedding_tensors(model)[0].local(tp))
    persistent = [size for size in sizes if size <= PERSISTENT_PARAMETER]
    return Size(sum(sizes), sum(persistent), max(sizes, default=0))
