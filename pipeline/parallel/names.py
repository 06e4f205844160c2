"""Canonical parameter names: the same in every layout and in every checkpoint."""

from torch import nn

from model.config import ModelConfig
from model.sharding import TIED_COPY, TIED_WEIGHT


def canonical_name(name: str, num_layers: int) -> str:
    """Translates a name of the engine's module into the name that `model.Network` gives it.

    A pipeline numbers its layers: 0 is the embedding, 1..N the blocks, N + 1 the head.
    """
    first, _, rest = name.partition(".")
    if first == "network":
        return rest
    index = int(first)
    if index == 0:
        return f"embedding.{rest}"
    if index == num_layers + 1:
        return f"head.{rest}"
    return f"blocks.{index - 1}.{rest}"


def canonical_parameters(module: nn.Module, config: ModelConfig) -> list[tuple[str, nn.Parameter]]:
    """(canonical name, parameter) of every parameter that this rank holds.

    Of tied embeddings the copy on the last stage has the name of the weight on the first.
    """
    tied = {TIED_COPY: TIED_WEIGHT} if config.tied_embeddings else {}
    names = [(canonical_name(n, config.num_layers), p) for n, p in module.named_parameters()]
    return [(tied.get(name, name), parameter) for name, parameter in names]
