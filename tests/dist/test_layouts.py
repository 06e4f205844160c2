"""Losses, gradient norms and final weights do not depend on the parallel layout."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist import layouts, table
from tests.dist.layouts import EIGHT_RANKS, FOUR_RANKS, TWO_RANKS, Outcome, distance

STEPS = 5
# What the rows of docs/parallelism.md's table do not have; the settings, and which tolerance.
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "esolm_b": ({}, "fp32"),
    "esolm_b, micro-batches of 2": ({"micro_batch_size": 2}, "fp32"),
    "ar, modern": ({"objective": "ar", "model": "modern"}, "fp32"),
    "esolm_a": ({"objective": "esolm_a"}, "fp32"),
    "mdlm, modern": ({"objective": "mdlm", "model": "modern"}, "fp32"),
    "bd3lm": ({"objective": "bd3lm"}, "fp32"),
    "esolm_b, selective": ({"recompute": "selective"}, "fp32"),
    "esolm_b, full": ({"recompute": "full"}, "fp32"),
    "esolm_b, offload": ({"offload": True}, "fp32"),
    "esolm_b, tied": ({"model": "tied"}, "fp32"),
    "esolm_b, tied, offload": ({"model": "tied", "offload": True}, "fp32"),
    "esolm_b, tied, bf16": ({"model": "tied", "precision": "bf16"}, "bf16"),
    "esolm_b, grouped": ({"model": "grouped"}, "fp32"),
    "esolm_b, grouped, selective": ({"model": "grouped", "recompute": "selective"}, "fp32"),
    "esolm_b, one key": ({"model": "one key"}, "fp32"),
    "esolm_b, bf16": ({"precision": "bf16"}, "bf16"),
    "esolm_b, compiled": ({"compiled": "aot_eager"}, "fp32"),
    # The way that products in FP8 go, without their rounding.
    "esolm_b, own products": ({"fp8": "plain", "recompute": "selective"}, "fp32"),
    "grouped, own products": ({"fp8": "plain", "model": "grouped"}, "fp32"),
    "one key, own products": ({"fp8": "plain", "model": "one key"}, "fp32"),
    "documents": ({"objective": "documents"}, "fp32"),
    "contexts": ({"objective": "documents", "contexts": [[1, 4], [3, 6]]}, "fp32"),
    "contexts, A": ({"objective": "esolm_a", "contexts": [[2, 3]]}, "fp32"),
    "documents, A": ({"objective": "documents, A"}, "fp32"),
    "documents, bd3lm": ({"objective": "documents, bd3lm"}, "fp32"),
}
EVERYWHERE = ("esolm_b", "esolm_b, bf16")
# Heads that share keys and values, which ranks split or share, and all else of today's networks;
# documents kept apart, in contexts that grow.
BESIDES = ("esolm_b, grouped", "esolm_b, one key", "documents", "contexts", "one key, own products")
SOMEWHERE = ("TP2+SP", "PP2", "DP2 ZeRO-3")
# What `make test` takes: every way to share a network out.
TWO_WAYS = [(n, kind) for n in TWO_RANKS for kind in EVERYWHERE if n != "CP2 ZeRO-3"]
TWO_WAYS += [("TP2", "esolm_b, grouped"), ("TP2+SP", "esolm_b, one key"), ("PP2", "documents")]
TWO_WAYS += [("TP2", "one key, own products"), ("TP2+SP", "one key, own products")]
# What `make check` takes of mixtures, also of kinds that are in no other of its cases.
MIXED = [
    ("TP2 x PP2", "esolm_b"),
    ("TP2 x PP2", "contexts"),
    ("TP2+SP x DP2 ZeRO-3", "esolm_b"),
    ("TP2 x DP2 ZeRO-3", "esolm_b, one key"),
    ("TP4+SP", "esolm_b, grouped"),
    ("TP2+SP x CP2", "esolm_b, grouped"),
    ("CP2 x PP2", "documents"),
]
# What `make check` takes of context parallelism: every objective, and every other way beside it;
# and products of their own in layers that are split in more than one way.
CHOSEN = [
    ("CP2", "esolm_b, micro-batches of 2"),
    ("CP2", "esolm_a"),
    ("CP2", "mdlm, modern"),
    ("CP2", "bd3lm"),
    ("CP2", "esolm_b, compiled"),
    ("CP2", "documents, A"),
    ("CP2 ZeRO-3", "ar, modern"),
    ("CP2 ZeRO-3", "esolm_b, selective"),
    ("CP4", "esolm_b, grouped"),
    ("CP4", "documents, bd3lm"),
    ("TP2 x CP2", "esolm_b, one key"),
    ("TP2+SP x CP2", "contexts"),
    ("CP2 x PP2", "esolm_b, tied, bf16"),
    ("CP2 x DP2 ZeRO-1", "mdlm, modern"),
    ("CP2 x DP2 ZeRO-3", "esolm_a"),
    ("TP2+SP x CP2", "esolm_b, own products"),
    ("TP2+SP x DP2 ZeRO-3", "grouped, own products"),
]
TIED = ("DP2 ZeRO-1", "TP2 x PP2")


@pytest.fixture(scope="module")
def reference_everywhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The few kinds of `make test` in a single process."""
    cases = {kind: ("one", KINDS[kind][0]) for kind in EVERYWHERE + BESIDES}
    return layouts.run(cases, tmp_path_factory.mktemp("few"), STEPS, 240)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every kind in a single process. Micro-batch size must not matter: one reference for both."""
    cases = {kind: ("one", settings) for kind, (settings, _) in KINDS.items()}
    return layouts.run(cases, tmp_path_factory.mktemp("single"), STEPS, 240)


def problems_of(
    named: list[tuple[str, str]], reference: dict[str, Outcome], folder: Path
) -> list[str]:
    """Of every (layout, kind), of as many ranks, what is too far from the single process."""
    cases = {f"{layout}, {kind}": (layout, KINDS[kind][0]) for layout, kind in named}
    outcomes = layouts.run(cases, folder, STEPS, 1700)
    wrong = []
    for (_, kind), (name, outcome) in zip(named, outcomes.items(), strict=True):
        found = distance(outcome, reference[kind])
        wrong += table.problems(name, found, KINDS[kind][1])
    return wrong


@pytest.mark.dist
@pytest.mark.parametrize(
    "named", [TWO_WAYS, pytest.param(MIXED, marks=pytest.mark.check)], ids=["2", "4"]
)
def test_each_sort_of_layout_is_the_single_process(
    named: list[tuple[str, str]], reference_everywhere: dict[str, Outcome], tmp_path: Path
) -> None:
    assert problems_of(named, reference_everywhere, tmp_path) == []


@pytest.mark.dist
@pytest.mark.check
@pytest.mark.parametrize("names", [TWO_RANKS, FOUR_RANKS], ids=["2", "4"])
def test_every_layout_is_the_single_process(
    names: dict[str, Any], reference: dict[str, Outcome], tmp_path: Path
) -> None:
    """With the cases above: two kinds in every layout, every kind in a layout of two sorts.

    Of those with context parallelism a choice.
    """
    named = [(name, kind) for name in names for kind in EVERYWHERE if "CP" not in name]
    for number, kind in enumerate(kind for kind in KINDS if kind not in EVERYWHERE):
        two = {SOMEWHERE[number % 3], SOMEWHERE[(number + 1) % 3]}
        named += [(name, kind) for name in SOMEWHERE if name in two and name in names]
    named += [case for case in CHOSEN if case[0] in names]
    named += [(name, "esolm_b, tied") for name in names if name in TIED]
    named = [case for case in named if case not in TWO_WAYS + MIXED]
    assert problems_of(named, reference, tmp_path) == []


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", [TWO_RANKS, FOUR_RANKS], ids=["2", "4"])
def test_every_kind_in_every_layout(
    names: dict[str, Any], reference: dict[str, Outcome], tmp_path: Path
) -> None:
    named = [(n, kind) for n in names for kind in KINDS]
    assert problems_of(named, reference, tmp_path) == []


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_ways_at_once_on_eight_ranks(reference: dict[str, Outcome], tmp_path: Path) -> None:
    kinds = [*EVERYWHERE, "esolm_b, tied", "mdlm, modern"]
    named = [(name, kind) for name in EIGHT_RANKS for kind in kinds]
    assert problems_of(named, reference, tmp_path) == []


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_table_of_the_docs(tmp_path: Path) -> None:
    """Ten steps of every objective in every layout and precision, as docs/parallelism.md has it."""
    wrong = []
    for precision in table.TOLERANCES:
        for (layout, objective), found in table.measure(precision, tmp_path).items():
            wrong += table.problems(f"{layout}, {objective}", found, precision)
    assert not wrong, "\n".join(wrong)


@pytest.mark.dist
@pytest.mark.check
def test_products_in_fp8(tmp_path: Path) -> None:
    """They change what is learnt by little, and by nearly the same in every layout."""
    pytest.importorskip("torchao", reason="the optional extra fp8 is not installed")
    kinds = {"bf16": {"precision": "bf16"}, "fp8": {"precision": "bf16", "fp8": "rowwise"}}
    alone = layouts.run({name: ("one", kinds[name]) for name in kinds}, tmp_path, STEPS, 240)
    apart = distance(alone["fp8"], alone["bf16"])
    assert apart.loss < 1e-3
    assert 3e-3 < apart.weights < 0.1
    cases = {name: (name, kinds["fp8"]) for name in ("PP2", "DP2 ZeRO-3", "TP2", "TP2+SP")}
    for name, outcome in layouts.run(cases, tmp_path / "two", STEPS, 400).items():
        found, from_bf16 = (distance(outcome, alone[kind]) for kind in ("fp8", "bf16"))
        assert not table.problems(name, found, "bf16")
        assert found.weights < 0.8 * from_bf16.weights, (name, found, from_bf16)


@pytest.mark.dist
@pytest.mark.check
def test_the_reference_learns_and_does_not_depend_on_micro_batches(
    reference: dict[str, Outcome],
) -> None:
    losses = [row[0] for row in reference["ar, modern"].rows]
    assert len(set(losses)) == len(losses)
    by_two = distance(reference["esolm_b, micro-batches of 2"], reference["esolm_b"])
    assert not table.problems("micro-batches of 2", by_two, "fp32")
    assert reference["esolm_b, tied"].rows != reference["esolm_b"].rows
