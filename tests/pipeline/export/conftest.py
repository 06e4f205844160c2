"""Random networks of every architecture behind the protocol that an export reads."""

import inspect
import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esolm.model.config import ModelConfig

VOCAB_SIZE = 420


@dataclass
class RandomSource:
    """A network of random weights, with the attributes of a checkpoint reader."""

    model: ModelConfig
    objective: dict[str, Any] = field(
        default_factory=lambda: {"name": "esolm", "variant": "B", "alpha_0": 0.5, "kappa": 0.5}
    )
    step: int = 7
    seq_len: int = 24
    packing: str = "continuous"
    tokenizer_path: Path | None = None
    data_path: Path | None = None

    def __post_init__(self) -> None:
        from esolm.model.network import Network
        from esolm.pipeline.parallel.single import single_process

        generator = torch.Generator().manual_seed(0)
        network = Network(self.model, single_process())
        self._tensors = {
            name: ("norm" in name) + 0.3 * torch.randn(parameter.shape, generator=generator)
            for name, parameter in network.named_parameters()
        }

    def tensors(self, state: str) -> dict[str, Tensor]:
        factor = {"ema": 1.0, "weights": 1.1}[state]
        return {name: factor * tensor for name, tensor in self._tensors.items()}


def small_model(**changes: Any) -> ModelConfig:
    sizes: dict[str, Any] = dict(
        vocab_size=VOCAB_SIZE, mask_id=3, hidden_size=32, num_layers=2, num_heads=4,
        ffn_hidden_size=48, cond_dim=8,
    )  # fmt: skip
    return ModelConfig(**{**sizes, **changes})


MODELS = {
    "paper": small_model(),
    "modern": small_model(
        norm="rmsnorm", activation="swiglu", mlp_bias=False, output_bias=False, adaln=False
    ),
    "layernorm_plain": small_model(adaln=False, rope_base=500.0),
    "rmsnorm_adaln": small_model(norm="rmsnorm", norm_eps=1e-6, mlp_bias=False),
    "swiglu_adaln": small_model(activation="swiglu", output_bias=False),
    "tied": small_model(tied_embeddings=True),
    "grouped": small_model(num_kv_heads=2),
    "one key": small_model(num_kv_heads=1, adaln=False),
    "normed": small_model(qk_norm=True, logit_softcap=2.0),
    "turned": small_model(rope_bases=(500.0, 10.0), rope_factor=4.0, rope_original_length=16),
}


@pytest.fixture(params=list(MODELS))
def source(request: pytest.FixtureRequest) -> RandomSource:
    """One of every architecture."""
    return RandomSource(MODELS[request.param])


@pytest.fixture
def modern_source() -> RandomSource:
    return RandomSource(MODELS["modern"])


@pytest.fixture
def paper_source(tokenizer_directory: Path) -> RandomSource:
    return RandomSource(MODELS["paper"], tokenizer_path=tokenizer_directory)


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from esolm.data_prep.tokenizers import save_tokenizer, train_model

    directory = tmp_path_factory.mktemp("tokenizer")
    text = "".join(inspect.getsource(module) for module in (json, textwrap, inspect))
    chunks = [text[i : i + 500] for i in range(0, 100_000, 500)]
    save_tokenizer(train_model(chunks, VOCAB_SIZE), directory)
    return directory
