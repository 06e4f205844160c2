"""A bad step changes nothing, and replicas that differ are found, under every kind of engine."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.ranks import run_ranks

CASES: dict[str, dict[str, Any]] = {
    "TP2": {"layout": {"tp": 2, "pp": 1, "dp": 1, "zero": 1}},
    "PP2": {"layout": {"tp": 1, "pp": 2, "dp": 1, "zero": 1}},
    "DP2 ZeRO-1": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 1}},
    "DP2 ZeRO-2": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 2}},
    "DP2 ZeRO-3": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 3}},
    "PP2 bf16": {"layout": {"tp": 1, "pp": 2, "dp": 1, "zero": 1}, "precision": "bf16"},
    "DP2 ZeRO-1 bf16": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 1}, "precision": "bf16"},
    "DP2 ZeRO-2 bf16": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 2}, "precision": "bf16"},
    "DP2 ZeRO-3 bf16": {"layout": {"tp": 1, "pp": 1, "dp": 2, "zero": 3}, "precision": "bf16"},
}
# The last rank of these holds no copy of what it changes.
WITHOUT_REPLICAS = {"TP2", "PP2", "PP2 bf16", "DP2 ZeRO-3", "DP2 ZeRO-3 bf16"}


@pytest.mark.dist
def test_guards(tmp_path: Path) -> None:
    answers = run_ranks("guards", 2, list(CASES.values()), tmp_path, 240)
    for name, answer in zip(CASES, answers, strict=True):
        assert answer["applied"] == [False, False, True], name
        assert answer["unchanged"] == [True, True, False], name
        if name in WITHOUT_REPLICAS:
            assert answer["flip"] == "", name
        else:
            assert "weights that must be equal" in answer["flip"], name
