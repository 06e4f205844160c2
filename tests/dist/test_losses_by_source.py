"""What a step reports of each source is the same in every layout, and that of its rows alone."""

from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.parallel.layout import Layout
from tests.dist.layouts import FOUR_RANKS, SINGLE, TWO_RANKS, few_of_context
from tests.dist.ranks import run_ranks

pytestmark = pytest.mark.dist

# The halves are the two terms; source 3 has a row of the first alone, so its loss is not known.
CASE = {"model": "modern", "sources": [0, 1, 2, 3, 1, 0, 2, 0]}
SIZES = {"TP2": 1, "TP2+SP": 2, "PP2": 2, "DP2 ZeRO-1": 1, "DP2 ZeRO-2": 2, "DP2 ZeRO-3": 2}


def ask(worker: str, ranks: int, arguments: Any, folder: Path) -> Any:
    return run_ranks(worker, ranks, arguments, folder, 300, "tests.dist.sources_worker")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """Every row's (term, loss) alone, and the two steps, in one process."""
    case = {**CASE, "layout": SINGLE, "micro_batch_size": 2}
    rows, steps = ask("by_row", 1, case, tmp_path_factory.mktemp("single"))
    return rows, steps


def test_a_sources_loss_is_that_of_its_rows(single: tuple[list[Any], list[Any]]) -> None:
    rows, (first, _) = single
    assert first["loss"] == pytest.approx(sum(loss for _, loss in rows), rel=1e-6)
    terms = {term for term, _ in rows}
    assert len(terms) == 2
    for source in range(3):
        expected = 0.0
        for term in terms:
            of_term = [
                (loss, number)
                for (name, loss), number in zip(rows, CASE["sources"], strict=True)
                if name == term
            ]
            mine = [loss for loss, number in of_term if number == source]
            expected += len(of_term) * sum(mine) / len(mine)
        assert first["sources"][str(source)] == pytest.approx(expected, rel=1e-6), source
    assert "3" not in first["sources"]


def differences(layouts: dict[str, Any], expected: list[Any], folder: Path) -> list[str]:
    cases = [
        {**CASE, "layout": layout, "micro_batch_size": SIZES.get(name, 1)}
        for name, layout in layouts.items()
    ]
    ranks = {Layout(**layout).world_size for layout in layouts.values()}
    found = ask("by_source", ranks.pop(), cases, folder)
    return [
        f"{name}, step {step}: {mine} instead of {theirs}"
        for name, steps in zip(layouts, found, strict=True)
        for step, (mine, theirs) in enumerate(zip(steps, expected, strict=True))
        if mine["sources"] != pytest.approx(theirs["sources"], rel=1e-5)
    ]


@pytest.mark.check
def test_two_ranks_report_the_same(single: tuple[list[Any], list[Any]], tmp_path: Path) -> None:
    assert differences(few_of_context(TWO_RANKS), single[1], tmp_path) == []


@pytest.mark.check
def test_four_ranks_report_the_same(single: tuple[list[Any], list[Any]], tmp_path: Path) -> None:
    assert differences(few_of_context(FOUR_RANKS), single[1], tmp_path) == []
