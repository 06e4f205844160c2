"""The tensors of the network: the one table of their names and shapes.

Initial weights, the split over tensor-parallel ranks, plans, checkpoints, exports and imports all
read it. A test holds the table equal to the modules of `esolm.model.network`.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from esolm.model.config import ModelConfig

NUM_FEATURES = 256
"""How many sinusoid features the conditioning vector of adaLN is computed from."""

# Tied embeddings have one weight in two places; its canonical name is the first.
TIED_WEIGHT, TIED_COPY = "embedding.tokens.weight", "head.output.weight"


class InitialValues(Enum):
    """What a tensor holds before the first step."""

    NORMAL = "normal"
    """Draws with the standard deviation init_std."""
    RESIDUAL = "residual"
    """As NORMAL, but scaled down with depth, because its layer writes to the residual stream."""
    ONES = "ones"
    ZEROS = "zeros"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the network.

    shape: the shape of the whole tensor, over all tensor-parallel ranks and without padding. split:
    the dimension that is split over these ranks; None if each rank has the whole tensor.
    vocabulary: whether the first dimension is the vocabulary, which is padded to a multiple of the
    number of ranks. heads: of a tensor that every attention head uses, in how many heads it can be
    split, 0 if in none; None for all other tensors.
    """

    name: str
    shape: tuple[int, ...]
    start: InitialValues
    split: int | None = None
    vocabulary: bool = False
    heads: int | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def local(self, tensor_parallel_size: int) -> int:
        """The number of elements on one rank, padding included."""
        dim = self.split_over(tensor_parallel_size)
        if dim is None:
            return self.numel
        size = self.shape[dim]
        return -(-size // tensor_parallel_size) * (self.numel // size)

    def split_over(self, tensor_parallel_size: int) -> int | None:
        """The dimension that is split over so many ranks; None if each has the whole tensor.

        Heads are not cut: where there are more ranks than heads, each rank has all of them.
        """
        if self.heads and self.heads % tensor_parallel_size:
            return None
        return self.split

    def is_partial(self, tensor_parallel_size: int) -> bool:
        """Whether a rank has the whole tensor, but of its gradient only what its own heads give."""
        return self.heads is not None and self.split_over(tensor_parallel_size) is None


def embedding_tensors(model: ModelConfig) -> list[TensorSpec]:
    """The tensors of the embedding.

    As in every function here that lists a layer's tensors, the names are those within the layer and
    stand in the order of registration.
    """
    tokens = TensorSpec(
        "tokens.weight",
        (model.vocab_size, model.hidden_size),
        InitialValues.NORMAL,
        0,
        vocabulary=True,
    )
    if not model.adaln:
        return [tokens]
    cond = model.cond_dim
    return [
        tokens,
        TensorSpec("conditioning.linear_in.weight", (cond, NUM_FEATURES), InitialValues.NORMAL),
        TensorSpec("conditioning.linear_in.bias", (cond,), InitialValues.ZEROS),
        TensorSpec("conditioning.linear_out.weight", (cond, cond), InitialValues.NORMAL),
        TensorSpec("conditioning.linear_out.bias", (cond,), InitialValues.ZEROS),
    ]


def block_tensors(model: ModelConfig) -> list[TensorSpec]:
    """The tensors of one block."""
    width, inner = model.hidden_size, model.ffn_hidden_size
    up = inner * (2 if model.activation == "swiglu" else 1)
    tensors = [
        TensorSpec("norm1.weight", (width,), InitialValues.ONES),
        TensorSpec("norm2.weight", (width,), InitialValues.ONES),
        *_attention_inputs(model),
        TensorSpec("attention.out.weight", (width, width), InitialValues.RESIDUAL, 1),
        TensorSpec("mlp.up.weight", (up, width), InitialValues.NORMAL, 0),
    ]
    if model.mlp_bias:
        tensors.append(TensorSpec("mlp.up.bias", (up,), InitialValues.ZEROS, 0))
    tensors.append(TensorSpec("mlp.down.weight", (width, inner), InitialValues.RESIDUAL, 1))
    if model.mlp_bias:
        tensors.append(TensorSpec("mlp.down.bias", (width,), InitialValues.ZEROS))
    return tensors + _modulation(model, 6)


def _attention_inputs(model: ModelConfig) -> list[TensorSpec]:
    """What makes queries, keys and values: one weight, or two where heads share the latter."""
    width, start = model.hidden_size, InitialValues.NORMAL
    tensors = [TensorSpec("attention.qkv.weight", (3 * width, width), start, 0)]
    if model.num_kv_heads:
        shape = (2 * model.kv_size, width)
        tensors = [
            TensorSpec("attention.qkv.q", (width, width), start, 0),
            TensorSpec("attention.qkv.kv", shape, start, 0, heads=model.kv_heads),
        ]
    norms = ("attention.q_norm.weight", "attention.k_norm.weight") if model.qk_norm else ()
    ones = InitialValues.ONES
    return tensors + [TensorSpec(name, (model.head_dim,), ones, heads=0) for name in norms]


def head_tensors(model: ModelConfig) -> list[TensorSpec]:
    """The tensors of the head; with tied embeddings, not the weight that is the embedding's."""
    vocab = model.vocab_size
    tensors = [
        TensorSpec("norm.weight", (model.hidden_size,), InitialValues.ONES),
        *_modulation(model, 2),
    ]
    if not model.tied_embeddings:
        # Zero with adaLN, as published, so that the first loss is exactly log V.
        start = InitialValues.ZEROS if model.adaln else InitialValues.NORMAL
        shape = (vocab, model.hidden_size)
        tensors.append(TensorSpec("output.weight", shape, start, 0, vocabulary=True))
    if model.output_bias:
        tensors.append(TensorSpec("output.bias", (vocab,), InitialValues.ZEROS, 0, vocabulary=True))
    return tensors


def _modulation(model: ModelConfig, vectors: int) -> list[TensorSpec]:
    if not model.adaln:
        return []
    rows = vectors * model.hidden_size
    return [
        TensorSpec("modulation.weight", (rows, model.cond_dim), InitialValues.ZEROS),
        TensorSpec("modulation.bias", (rows,), InitialValues.ZEROS),
    ]


def layer_tensors(model: ModelConfig, layer: int) -> list[TensorSpec]:
    """The tensors of a pipeline layer: 0 is the embedding, then come the blocks, last the head."""
    if layer == 0:
        return embedding_tensors(model)
    return head_tensors(model) if layer == model.num_layers + 1 else block_tensors(model)


def layer_name(model: ModelConfig, layer: int) -> str:
    """The canonical name of a pipeline layer, which stands before the names of its tensors."""
    if layer == 0:
        return "embedding"
    return "head" if layer == model.num_layers + 1 else f"blocks.{layer - 1}"


@lru_cache(maxsize=64)
def network_tensors(model: ModelConfig) -> dict[str, TensorSpec]:
    """All tensors by canonical name, which is the same in every layout and checkpoint."""
    found = {}
    for layer in range(model.num_layers + 2):
        for tensor in layer_tensors(model, layer):
            name = f"{layer_name(model, layer)}.{tensor.name}"
            found[name] = replace(tensor, name=name)
    return found
