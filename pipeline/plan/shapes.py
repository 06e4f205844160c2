"""The parameters of the network by layer, from the architecture alone.

Building the network, even on the meta device, needs process groups; a plan needs none.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from model.config import ModelConfig

NUM_FEATURES = 256
"""Sinusoid features that adaLN's conditioning reads; `model.layers.Conditioning.num_features`."""

PARTS = ("embedding", "attention", "feed-forward", "norms and adaLN", "output layer")

PERSISTENT_PARAMETER = 100_000
"""Elements up to which ZeRO-3 keeps a parameter whole on every rank; DeepSpeed's default."""


@dataclass(frozen=True)
class ParameterShape:
    """One parameter of a layer; `name` counts within the layer, `shape` is over all ranks."""

    name: str
    shape: tuple[int, ...]
    split: bool = False
    """Shared among the tensor-parallel ranks."""
    vocabulary: bool = False
    """The first dimension is the vocabulary, padded to a multiple of the ranks."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def local(self, tp: int) -> int:
        """Elements on one of tp tensor-parallel ranks."""
        if self.vocabulary:
            return -(-self.shape[0] // tp) * math.prod(self.shape[1:])
        return self.numel // tp if self.split else self.numel


@dataclass(frozen=True)
class Size:
    """Elements that a rank holds of some layers."""

    parameters: int
    persistent: int
    """In parameters small enough for ZeRO-3 to keep whole."""
    largest: int
    """In the largest parameter."""


def embedding_shapes(model: ModelConfig) -> list[ParameterShape]:
    tokens = ParameterShape(
        "tokens.weight", (model.vocab_size, model.hidden_size), split=True, vocabulary=True
    )
    if not model.adaln:
        return [tokens]
    cond = model.cond_dim
    return [
        tokens,
        ParameterShape("conditioning.linear_in.weight", (cond, NUM_FEATURES)),
        ParameterShape("conditioning.linear_in.bias", (cond,)),
        ParameterShape("conditioning.linear_out.weight", (cond, cond)),
        ParameterShape("conditioning.linear_out.bias", (cond,)),
    ]


def block_shapes(model: ModelConfig) -> list[ParameterShape]:
    width, inner = model.hidden_size, model.ffn_hidden_size
    up = inner * (2 if model.activation == "swiglu" else 1)
    shapes = [
        ParameterShape("norm1.weight", (width,)),
        ParameterShape("norm2.weight", (width,)),
        ParameterShape("attention.qkv.weight", (3 * width, width), split=True),
        ParameterShape("attention.out.weight", (width, width), split=True),
        ParameterShape("mlp.up.weight", (up, width), split=True),
        ParameterShape("mlp.down.weight", (width, inner), split=True),
    ]
    if model.mlp_bias:
        shapes.append(ParameterShape("mlp.up.bias", (up,), split=True))
        shapes.append(ParameterShape("mlp.down.bias", (width,)))
    return shapes + _modulation(model, 6)


def head_shapes(model: ModelConfig) -> list[ParameterShape]:
    """With tied embeddings: without the weight that is the embedding's."""
    width, vocab = model.hidden_size, model.vocab_size
    shapes = [ParameterShape("norm.weight", (width,))]
    if not model.tied_embeddings:
        shapes.append(_output_weight(model))
    if model.output_bias:
        shapes.append(ParameterShape("output.bias", (vocab,), split=True, vocabulary=True))
    return shapes + _modulation(model, 2)


def _output_weight(model: ModelConfig) -> ParameterShape:
    shape = (model.vocab_size, model.hidden_size)
    return ParameterShape("output.weight", shape, split=True, vocabulary=True)


def _modulation(model: ModelConfig, vectors: int) -> list[ParameterShape]:
    if not model.adaln:
        return []
    rows = vectors * model.hidden_size
    return [
        ParameterShape("modulation.weight", (rows, model.cond_dim)),
        ParameterShape("modulation.bias", (rows,)),
    ]


def layer_shapes(model: ModelConfig, layer: int) -> list[ParameterShape]:
    """Parameters of a pipeline layer: 0 the embedding, then the blocks, last the head."""
    if layer == 0:
        return embedding_shapes(model)
    return head_shapes(model) if layer == model.num_layers + 1 else block_shapes(model)


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Parameters of the whole network, vocabulary unpadded, by `PARTS`."""
    counts = dict.fromkeys(PARTS, 0)
    counts["embedding"] = sum(shape.numel for shape in embedding_shapes(model))
    counts["output layer"] = sum(shape.numel for shape in head_shapes(model))
    for shape in block_shapes(model):
        kinds = {"attention": "attention", "mlp": "feed-forward"}
        part = kinds.get(shape.name.split(".")[0], "norms and adaLN")
        counts[part] += model.num_layers * shape.numel
    return counts


@lru_cache(maxsize=4096)
def stage_size(model: ModelConfig, first: int, end: int, tp: int) -> Size:
    """What one tensor-parallel rank holds of the pipeline layers [first, end).

    With tied embeddings a last stage that is not also the first has a copy of the weight.
    """
    sizes = [shape.local(tp) for layer in range(first, end) for shape in layer_shapes(model, layer)]
    if model.tied_embeddings and 0 < first < end == model.num_layers + 2:
        sizes.append(_output_weight(model).local(tp))
    persistent = [size for size in sizes if size <= PERSISTENT_PARAMETER]
    return Size(sum(sizes), sum(persistent), max(sizes, default=0))
