"""Runs of the same training in many layouts, and how far each is from a single process."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esolm.pipeline.checkpoint.store import read_full
from esolm.pipeline.parallel.fragments import WEIGHTS
from esolm.pipeline.parallel.layout import Layout
from tests.dist.ranks import run_ranks

SINGLE = {"tp": 1, "pp": 1, "dp": 1, "zero": 1}
TWO_RANKS = {
    "TP2": {"tp": 2, "pp": 1, "dp": 1, "zero": 1},
    "TP2+SP": {"tp": 2, "pp": 1, "dp": 1, "zero": 1, "sequence": True},
    "PP2": {"tp": 1, "pp": 2, "dp": 1, "zero": 1},
    "DP2 ZeRO-1": {"tp": 1, "pp": 1, "dp": 2, "zero": 1},
    "DP2 ZeRO-2": {"tp": 1, "pp": 1, "dp": 2, "zero": 2},
    "DP2 ZeRO-3": {"tp": 1, "pp": 1, "dp": 2, "zero": 3},
    "CP2": {"tp": 1, "pp": 1, "dp": 1, "zero": 1, "cp": 2},
    "CP2 ZeRO-3": {"tp": 1, "pp": 1, "dp": 1, "zero": 3, "cp": 2},
}
FOUR_RANKS = {
    "TP4+SP": {"tp": 4, "pp": 1, "dp": 1, "zero": 1, "sequence": True},
    "TP2 x PP2": {"tp": 2, "pp": 2, "dp": 1, "zero": 1},
    "TP2+SP x PP2": {"tp": 2, "pp": 2, "dp": 1, "zero": 1, "sequence": True},
    "TP2 x DP2 ZeRO-1": {"tp": 2, "pp": 1, "dp": 2, "zero": 1},
    "TP2 x DP2 ZeRO-3": {"tp": 2, "pp": 1, "dp": 2, "zero": 3},
    "TP2+SP x DP2 ZeRO-3": {"tp": 2, "pp": 1, "dp": 2, "zero": 3, "sequence": True},
    "PP2 x DP2": {"tp": 1, "pp": 2, "dp": 2, "zero": 1},
    "DP4 ZeRO-1": {"tp": 1, "pp": 1, "dp": 4, "zero": 1},
    "DP4 ZeRO-2": {"tp": 1, "pp": 1, "dp": 4, "zero": 2},
    "DP4 ZeRO-3": {"tp": 1, "pp": 1, "dp": 4, "zero": 3},
    "CP4": {"tp": 1, "pp": 1, "dp": 1, "zero": 1, "cp": 4},
    "TP2 x CP2": {"tp": 2, "pp": 1, "dp": 1, "zero": 1, "cp": 2},
    "TP2+SP x CP2": {"tp": 2, "pp": 1, "dp": 1, "zero": 1, "sequence": True, "cp": 2},
    "CP2 x PP2": {"tp": 1, "pp": 2, "dp": 1, "zero": 1, "cp": 2},
    "CP2 x DP2 ZeRO-1": {"tp": 1, "pp": 1, "dp": 2, "zero": 1, "cp": 2},
    "CP2 x DP2 ZeRO-3": {"tp": 1, "pp": 1, "dp": 2, "zero": 3, "cp": 2},
}
EIGHT_RANKS = {
    "TP2 x PP2 x DP2": {"tp": 2, "pp": 2, "dp": 2, "zero": 1},
    "TP2+SP x PP2 x DP2": {"tp": 2, "pp": 2, "dp": 2, "zero": 1, "sequence": True},
}
# Several ranks leave out noised tokens without loss, take the loss in pieces of few rows and
# scatter gradients in many buckets. The single process that they are held to does none of it.
PIECEWISE = {"skip_multiple": 4, "piece_rows": 3, "bucket": 3000}
# Each case makes process groups, whose threads wake up for ever: sixty of them per case and rank.
CASES_PER_LAUNCH = 14
LAYOUTS = {"one": SINGLE, **TWO_RANKS, **FOUR_RANKS, **EIGHT_RANKS}


def few_of_context(layouts: dict[str, Any]) -> dict[str, Any]:
    """All without context parallelism, and of those with it one of each number of ranks."""
    few = ("CP2 ZeRO-3", "CP2 x PP2")
    return {name: each for name, each in layouts.items() if "CP" not in name or name in few}


@dataclass(frozen=True)
class Outcome:
    """Of one case: loss and gradient norm of every step, and where the last weights lie."""

    rows: list[list[float]]
    weights: Path


@dataclass(frozen=True)
class Distance:
    """Relative differences: the largest of a loss and of a norm over the steps, and of the weights.

    The weights after the last step are taken as one vector, |a - b| / |b|: Adam moves a weight
    whose gradient is all rounding as far as any other, so single ones do not compare.
    """

    loss: float
    norm: float
    weights: float

    def __str__(self) -> str:
        return " / ".join(f"{value:.0e}" for value in (self.loss, self.norm, self.weights))


def run(
    cases: dict[str, tuple[str, dict[str, Any]]],
    folder: Path,
    steps: int,
    timeout: float,
    device: str = "cpu",
) -> dict[str, Outcome]:
    """cases: name -> (layout, settings), all of as many ranks. device: as of `run_ranks`."""
    (ranks,) = {_ranks(LAYOUTS[layout]) for layout, _ in cases.values()}
    names, outcomes = list(cases), dict[str, Outcome]()
    for first in range(0, len(names), CASES_PER_LAUNCH):
        some = {name: cases[name] for name in names[first : first + CASES_PER_LAUNCH]}
        outcomes |= _launch(ranks, some, folder / f"launch_{first}", steps, timeout, device)
    return outcomes


def _launch(
    ranks: int,
    cases: dict[str, tuple[str, dict[str, Any]]],
    folder: Path,
    steps: int,
    timeout: float,
    device: str,
) -> dict[str, Outcome]:
    pieces = PIECEWISE if ranks > 1 else {}
    places = [folder / f"weights_{number}" for number in range(len(cases))]
    arguments = [
        {"layout": LAYOUTS[layout], **settings, "steps": steps, "out": str(place), **pieces}
        for (layout, settings), place in zip(cases.values(), places, strict=True)
    ]
    answers = run_ranks("losses", ranks, arguments, folder, timeout, device=device)
    outcomes = (Outcome(rows, place) for rows, place in zip(answers, places, strict=True))
    return dict(zip(cases, outcomes, strict=True))


def distance(outcome: Outcome, expected: Outcome) -> Distance:
    pairs = list(zip(outcome.rows, expected.rows, strict=True))
    loss, norm = (max(abs(a[i] - b[i]) / abs(b[i]) for a, b in pairs) for i in (0, 1))
    mine, theirs = read_full(outcome.weights, WEIGHTS), read_full(expected.weights, WEIGHTS)
    assert mine.keys() == theirs.keys()
    apart = sum(float((mine[name] - tensor).square().sum()) for name, tensor in theirs.items())
    length = sum(float(tensor.square().sum()) for tensor in theirs.values())
    return Distance(loss, norm, math.sqrt(apart / length))


def _ranks(layout: dict[str, Any]) -> int:
    return Layout(**layout).world_size
