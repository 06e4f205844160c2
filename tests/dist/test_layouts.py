"""The loss curve and the gradient norm do not depend on the parallel layout."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.ranks import run_ranks

SINGLE = {"tp": 1, "pp": 1, "dp": 1, "zero": 1}
TWO_RANKS = {
    "TP2": {"tp": 2, "pp": 1, "dp": 1, "zero": 1},
    "TP2+SP": {"tp": 2, "pp": 1, "dp": 1, "zero": 1, "sequence": True},
    "PP2": {"tp": 1, "pp": 2, "dp": 1, "zero": 1},
    "DP2 ZeRO-1": {"tp": 1, "pp": 1, "dp": 2, "zero": 1},
    "DP2 ZeRO-2": {"tp": 1, "pp": 1, "dp": 2, "zero": 2},
    "DP2 ZeRO-3": {"tp": 1, "pp": 1, "dp": 2, "zero": 3},
}
FOUR_RANKS = {
    "TP2 x PP2": {"tp": 2, "pp": 2, "dp": 1, "zero": 1},
    "TP2+SP x PP2": {"tp": 2, "pp": 2, "dp": 1, "zero": 1, "sequence": True},
    "TP2+SP x DP2 ZeRO-3": {"tp": 2, "pp": 1, "dp": 2, "zero": 3, "sequence": True},
    "TP2 x DP2 ZeRO-1": {"tp": 2, "pp": 1, "dp": 2, "zero": 1},
    "TP2 x DP2 ZeRO-3": {"tp": 2, "pp": 1, "dp": 2, "zero": 3},
    "PP2 x DP2": {"tp": 1, "pp": 2, "dp": 2, "zero": 1},
    "DP4 ZeRO-2": {"tp": 1, "pp": 1, "dp": 4, "zero": 2},
}
# bf16 rounds each activation to 3 significant digits, in another order in another layout.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "esolm_b": ({}, 1e-5),
    "esolm_b, micro-batches of 2": ({"micro_batch_size": 2}, 1e-5),
    "ar, modern": ({"objective": "ar", "model": "modern"}, 1e-5),
    "esolm_a": ({"objective": "esolm_a"}, 1e-5),
    "mdlm, modern": ({"objective": "mdlm", "model": "modern"}, 1e-5),
    "bd3lm": ({"objective": "bd3lm"}, 1e-5),
    "esolm_b, selective": ({"recompute": "selective"}, 1e-5),
    "esolm_b, full": ({"recompute": "full"}, 1e-5),
    "esolm_b, offload": ({"offload": True}, 1e-5),
    "esolm_b, bf16": ({"precision": "bf16"}, 1e-2),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every kind in a single process. Micro-batch size must not matter: one reference for both."""
    cases = [{"layout": SINGLE, **settings} for settings, _ in KINDS.values()]
    answers = run_ranks("losses", 1, cases, tmp_path_factory.mktemp("single"), 120)
    return dict(zip(KINDS, answers, strict=True))


def check(num_ranks: int, named: list[tuple[str, str]], reference: Any, folder: Path) -> None:
    """Every (layout, kind) against the single process."""
    layouts = {**TWO_RANKS, **FOUR_RANKS}
    cases = [{"layout": layouts[layout], **KINDS[kind][0]} for layout, kind in named]
    answers = run_ranks("losses", num_ranks, cases, folder, 1200)
    wrong = []
    for (layout, kind), answer in zip(named, answers, strict=True):
        for step, (got, expected) in enumerate(zip(answer, reference[kind], strict=True)):
            for what, a, b in zip(("loss", "norm"), got, expected, strict=True):
                if abs(a - b) > KINDS[kind][1] * abs(b):
                    wrong.append(f"{layout}, {kind}, step {step}: {what} {a} instead of {b}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.dist
@pytest.mark.parametrize(("num_ranks", "layouts"), [(2, TWO_RANKS), (4, FOUR_RANKS)])
def test_losses_and_gradient_norms_equal_a_single_process(
    num_ranks: int, layouts: dict[str, Any], reference: dict[str, Any], tmp_path: Path
) -> None:
    """Two kinds in every layout, every kind in one layout of each sort."""
    everywhere, somewhere = ("esolm_b", "esolm_b, bf16"), ("TP2+SP", "PP2", "DP2 ZeRO-3")
    named = [
        (layout, kind)
        for layout in layouts
        for kind in KINDS
        if kind in everywhere or layout in somewhere
    ]
    check(num_ranks, named, reference, tmp_path)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("num_ranks", "layouts"), [(2, TWO_RANKS), (4, FOUR_RANKS)])
def test_every_kind_in_every_layout(
    num_ranks: int, layouts: dict[str, Any], reference: dict[str, Any], tmp_path: Path
) -> None:
    named = [(layout, kind) for layout in layouts for kind in KINDS]
    check(num_ranks, named, reference, tmp_path)


@pytest.mark.dist
def test_the_reference_learns_and_does_not_depend_on_micro_batches(
    reference: dict[str, Any],
) -> None:
    losses = [row[0] for row in reference["ar, modern"]]
    assert len(set(losses)) == len(losses)
    by_two = reference["esolm_b, micro-batches of 2"]
    assert _close(by_two, reference["esolm_b"])


def _close(a: list[list[float]], b: list[list[float]]) -> bool:
    return all(x == pytest.approx(y, rel=1e-5) for x, y in zip(a, b, strict=True))
