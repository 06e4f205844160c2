"""The initial weights are the same bits in every layout, ZeRO stage and precision."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.model.initialize import initial_values
from esolm.model.tensors import network_tensors
from esolm.pipeline.checkpoint.store import read_full
from esolm.pipeline.parallel.fragments import WEIGHTS
from tests.dist import layouts, workers
from tests.dist.layouts import FOUR_RANKS, TWO_RANKS, few_of_context

KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "tied": {"model": "tied"},
    "bf16": {"precision": "bf16"},
}
MIXED = ["TP2+SP x PP2", "TP2 x DP2 ZeRO-3"]
SEED = 1  # of tests.dist.workers


def problems_of(names: list[str], kinds: list[str], folder: Path) -> list[str]:
    """What the layouts hold before the first step, but should not."""
    named = [(layout, kind) for layout in names for kind in kinds]
    cases = {f"{layout}, {kind}": (layout, KINDS[kind]) for layout, kind in named}
    outcomes = layouts.run(cases, folder, 0, 500)
    wrong = []
    for (_, kind), (name, outcome) in zip(named, outcomes.items(), strict=True):
        model = workers.MODELS[KINDS[kind].get("model", "paper")]
        found = read_full(outcome.weights, WEIGHTS)
        assert found.keys() == network_tensors(model).keys()
        for tensor, values in found.items():
            expected = initial_values(tensor, model, SEED, 0, 1)
            if kind == "bf16":
                expected = expected.bfloat16().float()
            if not torch.equal(values, expected):
                wrong.append(f"{name}: {tensor}")
    return wrong


@pytest.mark.dist
def test_two_ranks(tmp_path: Path) -> None:
    assert not problems_of(list(few_of_context(TWO_RANKS)), ["fp32", "tied"], tmp_path)


@pytest.mark.dist
@pytest.mark.check
def test_two_and_four_ranks(tmp_path: Path) -> None:
    assert not problems_of(["one"], list(KINDS), tmp_path / "one")
    assert not problems_of([n for n in TWO_RANKS if "DP2" in n], ["bf16"], tmp_path / "two")
    assert not problems_of(list(few_of_context(FOUR_RANKS)), ["fp32"], tmp_path / "four")
    assert not problems_of(MIXED, ["tied", "bf16"], tmp_path / "mixed")
