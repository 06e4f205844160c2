"""A bad step changes nothing, and replicas that differ are found, under every kind of engine."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.layouts import SINGLE
from tests.dist.ranks import run_ranks

CASES: dict[str, dict[str, Any]] = {
    "TP2": {"layout": {"tp": 2, "pp": 1, "dp": 1, "zero": 1}},
    "TP2 ZeRO-3": {"layout": {"tp": 2, "pp": 1, "dp": 1, "zero": 3}},
    "PP2": {"layout": {"tp": 1, "pp": 2, "dp": 1, "zero": 1}},
    "DP2 ZeRO-1": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 1}},
    "DP2 ZeRO-2": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 2}},
    "DP2 ZeRO-3": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 3}},
    "CP2 ZeRO-2": {"layout": {"tp": 1, "pp": 1, "dp": 1, "zero": 2, "cp": 2}},
    "PP2 bf16": {"layout": {"tp": 1, "pp": 2, "dp": 1, "zero": 1}, "precision": "bf16"},
    "DP2 ZeRO-1 bf16": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 1}, "precision": "bf16"},
    "DP2 ZeRO-2 bf16": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 2}, "precision": "bf16"},
    "DP2 ZeRO-3 bf16": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 3}, "precision": "bf16"},
}
EMBEDDING, FIRST_NORM, LAST_NORM = (
    "embedding.tokens.weight",
    "blocks.0.norm1.weight",
    "head.norm.weight",
)
# What the last rank holds as others do, and what it alone holds.
REPLICAS = {
    "TP2": ([FIRST_NORM], [EMBEDDING]),
    "TP2 ZeRO-3": ([FIRST_NORM], [EMBEDDING]),
    "DP2 ZeRO-3": ([FIRST_NORM], []),
    "DP2 ZeRO-3 bf16": ([FIRST_NORM], []),
    "PP2": ([], [LAST_NORM]),
    "PP2 bf16": ([], [LAST_NORM]),
}


@pytest.mark.dist
def test_guards_of_one_process(tmp_path: Path) -> None:
    """By PyTorch alone, and offloaded by DeepSpeed."""
    settings = [{}, {"precision": "bf16"}, {"offload": True}]
    cases = [{"layout": SINGLE, "flips": [], **each} for each in settings]
    for answer in run_ranks("guards", 1, cases, tmp_path, 240):
        assert answer["applied"] == [False, False, False, True]
        assert answer["unchanged"] == [True, True, True, False]


@pytest.mark.dist
def test_guards(tmp_path: Path) -> None:
    cases = [
        {**case, "flips": [each for part in replicas_of(name) for each in part]}
        for name, case in CASES.items()
    ]
    answers = run_ranks("guards", 2, cases, tmp_path, 240)
    for name, answer in zip(CASES, answers, strict=True):
        assert answer["applied"] == [False, False, False, True], name
        assert answer["unchanged"] == [True, True, True, False], name
        replicated, alone = replicas_of(name)
        for parameter in replicated:
            assert "weights that must be equal" in answer["flips"][parameter], (name, parameter)
        for parameter in alone:
            assert answer["flips"][parameter] == "", (name, parameter)


def replicas_of(name: str) -> tuple[list[str], list[str]]:
    return REPLICAS.get(name, ([EMBEDDING, LAST_NORM], []))
