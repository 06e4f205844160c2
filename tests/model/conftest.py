"""Random small networks in one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from esolm.model.config import ModelConfig

if TYPE_CHECKING:
    from esolm.model.network import Network

MASK_ID = 3

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "paper": {},
    "modern": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "mlp_bias": False,
        "output_bias": False,
        "adaln": False,
    },
    "today": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "mlp_bias": False,
        "output_bias": False,
        "adaln": False,
        "num_heads": 6,
        "num_kv_heads": 2,
        "qk_norm": True,
        "logit_softcap": 3.0,
        "rope_bases": (100.0, 20.0),
        "rope_factor": 4.0,
        "rope_original_length": 8,
        "z_loss": 0.1,
    },
    "tied": {"tied_embeddings": True},
    "one key": {"num_heads": 2, "num_kv_heads": 1},
    "normed": {"qk_norm": True, "norm": "rmsnorm", "norm_eps": 0.1, "logit_softcap": 2.0},
    "turned": {"rope_bases": (50.0, 7.0), "rope_factor": 3.0, "rope_original_length": 6},
}


def small_config(**changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 11,
        "mask_id": MASK_ID,
        "hidden_size": 12,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_hidden_size": 20,
        "cond_dim": 6,
    }
    return ModelConfig(**{**sizes, **changes})


def every_architecture() -> Iterator[ModelConfig]:
    """Small networks of all combinations of the choices that decide which tensors there are."""
    choices: dict[str, tuple[Any, ...]] = {
        "norm": ("layernorm", "rmsnorm"),
        "activation": ("gelu_tanh", "swiglu"),
        **dict.fromkeys(("mlp_bias", "output_bias", "tied_embeddings", "adaln"), (True, False)),
        "num_kv_heads": (0, 1),
        "qk_norm": (False, True),
    }
    for values in itertools.product(*choices.values()):
        yield small_config(**dict(zip(choices, values, strict=True)))


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Network]:
    """Builds a float64 network with random weights everywhere, in evaluation mode."""
    # The network brings megatron-core, which takes seconds that tests of objectives need not wait.
    import torch

    from esolm.model.network import Network
    from esolm.pipeline.parallel.single import single_process

    def make(scale: float = 0.4, **changes: Any) -> Network:
        network = Network(small_config(**changes), single_process()).double().eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(scale * noise + ("norm" in name))
        return network

    return make


@pytest.fixture(params=list(ARCHITECTURES))
def network(request: pytest.FixtureRequest, make_network: Callable[..., Network]) -> Network:
    """One of every architecture."""
    return make_network(**ARCHITECTURES[request.param])
