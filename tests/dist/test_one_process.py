"""One process trains, averages and resumes by PyTorch alone as DeepSpeed does."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.layouts import SINGLE
from tests.dist.ranks import run_ranks

# Rounding, in whose order alone the two differ.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "fp32": ({}, 1e-6),
    "fp32, tied": ({"model": "tied", "recompute": "full"}, 1e-6),
    "bf16": ({"precision": "bf16"}, 1e-4),
    "bf16, tied": ({"precision": "bf16", "model": "tied"}, 1e-4),
}


@pytest.mark.dist
@pytest.mark.check
def test_one_process_needs_no_deepspeed(tmp_path: Path) -> None:
    cases = [
        {"layout": SINGLE, "steps": 5, "out": str(tmp_path / kind), **settings}
        for kind, (settings, _) in KINDS.items()
    ]
    answers = run_ranks("without_deepspeed", 1, cases, tmp_path, 240)
    for (kind, (_, rounding)), answer in zip(KINDS.items(), answers, strict=True):
        for found, expected in zip(answer["found"], answer["expected"], strict=True):
            assert found == pytest.approx(expected, rel=rounding), kind
        first, with_average, again = answer["average"]["losses"]
        assert answer["average"]["unchanged"], kind
        assert first == again != with_average, kind
        uninterrupted, resumed = answer["through"]
        assert resumed == uninterrupted, kind
        expected = [pytest.approx(row, rel=rounding) for row in uninterrupted]
        assert answer["resumed"] == expected, kind
