"""A small random network of each objective that `generate` decodes, in float64."""

from typing import Any

import pytest
import torch

from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM


def network(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, mask_token_id=29, bos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return EsoLMForMaskedLM(EsoLMConfig(**{**sizes, **changes})).double().eval()


@pytest.fixture(scope="session")
def esolm() -> Any:
    return network()


@pytest.fixture(scope="session", params=[None, 1])
def ar(request: pytest.FixtureRequest) -> Any:
    return network(objective="ar", prepend_token_id=request.param)
