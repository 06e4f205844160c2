"""The count of operations against the shapes of the matrices that make them."""

from typing import Any

import pytest

from esolm.model.attention import AttentionPattern
from esolm.model.flops import RowWork, layer_flops
from esolm.model.tensors import block_tensors
from tests.model.conftest import ARCHITECTURES, small_config

LENGTH, SCORED = 16, 9


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_every_matrix_multiplies_every_token(architecture: dict[str, Any]) -> None:
    """Twice for each multiply-add, thrice with the backward pass, in a row of one stream."""
    config = small_config(num_layers=3, **architecture)
    work = RowWork(1.0, AttentionPattern.CAUSAL, LENGTH, SCORED)
    matrices = [
        tensor.numel
        for tensor in block_tensors(config)
        if len(tensor.shape) == 2 and not tensor.name.startswith("modulation")
    ]
    pairs = sum(range(1, LENGTH + 1))
    block = LENGTH * sum(matrices) + 2 * config.hidden_size * pairs
    head = SCORED * config.hidden_size * config.vocab_size
    assert layer_flops(config, work) == [0, 6 * block, 6 * block, 6 * block, 6 * head]
