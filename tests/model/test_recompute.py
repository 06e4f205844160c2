"""Activation checkpointing computes the same gradients, and really computes again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from esolm.model.attention import AttentionPattern, attend
from esolm.model.config import RECOMPUTE
from esolm.model.network import Network
from esolm.model.recompute import set_recompute
from tests.model.test_network import make_input


@pytest.mark.parametrize("mode", RECOMPUTE)
def test_recompute(
    mode: str, make_network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*tensors: Any) -> Tensor:
        calls.append(1)
        return attend(*tensors)

    monkeypatch.setattr("esolm.model.layers.attend", counted)
    gradients = []
    for chosen in ("none", mode):
        network = make_network(num_layers=3, dropout=0.3).train()
        set_recompute(network, chosen)
        calls.clear()
        logits = network.all_logits(make_input(AttentionPattern.TWO_STREAM))
        logits.nan_to_num(neginf=0.0).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert len(calls) == (3 if mode == "none" else 6)
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert torch.equal(plain, recomputed)
