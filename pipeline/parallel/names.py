"""Canonical parameter names: the same in every layout and in every checkpoint."""

from torch import nn

from esolm.model.config import ModelConfig
from esolm.model.tensors import TIED_COPY, TIED_WEIGHT, layer_name


def canonical_name(name: str, model: ModelConfig) -> str:
    """Translates a name of the engine's module into the name that `model.Network` gives it.

    A pipeline numbers its layers: 0 is the embedding, 1..N the blocks, N + 1 the head.
    """
    first, _, rest = name.partition(".")
    return rest if first == "network" else f"{layer_name(model, int(first))}.{rest}"


def canonical_parameters(module: nn.Module, config: ModelConfig) -> list[tuple[str, nn.Parameter]]:
    """Returns (canonical name, parameter) of every parameter that this rank holds.

    If embeddings are tied, the copy on the last stage has the name of the weight on the first.
    """
    tied = {TIED_COPY: TIED_WEIGHT} if config.tied_embeddings else {}
    names = [(canonical_name(n, config), p) for n, p in module.named_parameters()]
    return [(tied.get(name, name), parameter) for name, parameter in names]
