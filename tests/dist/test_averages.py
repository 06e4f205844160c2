"""The average of the weights can be computed with for a while, under every kind of engine."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.ranks import run_ranks
from tests.dist.test_guards import CASES

SINGLE: dict[str, Any] = {"layout": {"tp": 1, "pp": 1, "dp": 1, "zero": 1}}
KINDS = {
    "fp32": SINGLE,
    "bf16": {**SINGLE, "precision": "bf16"},
    **{name: {**SINGLE, "objective": name} for name in ("mdlm", "bd3lm", "ar")},
}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every kind in one process."""
    folder = tmp_path_factory.mktemp("single")
    return dict(
        zip(KINDS, run_ranks("averages", 1, list(KINDS.values()), folder, 120), strict=True)
    )


@pytest.mark.dist
@pytest.mark.check
def test_the_average_is_computed_with_and_leaves_no_trace(
    single: dict[str, Any], tmp_path: Path
) -> None:
    answers = run_ranks("averages", 2, list(CASES.values()), tmp_path, 240)
    for name, answer in {**single, **dict(zip(CASES, answers, strict=True))}.items():
        assert answer["unchanged"], name
        raw, averaged, again = answer["losses"]
        assert raw == again, name
        assert abs(raw - averaged) > 1e-5 * raw, name
    for name, answer in zip(CASES, answers, strict=True):
        precision, tolerance = ("bf16", 1e-2) if "bf16" in name else ("fp32", 1e-5)
        expected = single[precision]
        for key in ("losses", "next", "buckets"):
            assert answer[key] == pytest.approx(expected[key], rel=tolerance), (name, key)


@pytest.mark.dist
@pytest.mark.check
def test_buckets_average_to_the_diffusion_term(single: dict[str, Any]) -> None:
    """Of objectives without a time, or with many in a row, there are none."""
    mdlm = single["mdlm"]
    assert sum(mdlm["buckets"]) / 4 == pytest.approx(mdlm["next"][0], rel=1e-6)
    assert single["bd3lm"]["buckets"] == single["ar"]["buckets"] == [None] * 4
