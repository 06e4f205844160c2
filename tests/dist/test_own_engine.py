"""The example engine of `pipeline/parallel/build.py` trains, averages and resumes as ours does."""

from pathlib import Path

import pytest

from tests.dist.layouts import SINGLE
from tests.dist.ranks import run_ranks


@pytest.mark.dist
def test_the_example_is_an_engine(tmp_path: Path) -> None:
    case = {"layout": SINGLE, "steps": 5, "out": str(tmp_path / "weights")}
    arguments = {"case": case, "folder": str(tmp_path / "checkpoint")}
    answer = run_ranks("own_engine", 1, arguments, tmp_path, 240)
    for found, expected in zip(answer["found"], answer["expected"], strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    first, with_average, again = answer["average"]["losses"]
    assert answer["average"]["unchanged"]
    assert first == again != with_average
    uninterrupted, resumed = answer["through"]
    assert resumed == uninterrupted
    assert answer["resumed"] == [pytest.approx(row, rel=1e-6) for row in uninterrupted]
