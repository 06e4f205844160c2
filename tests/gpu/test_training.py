"""Training on GPUs over NCCL is the training on CPUs over gloo, in the same layout."""

from pathlib import Path

import pytest

from tests.dist import layouts
from tests.dist.layouts import distance
from tests.gpu.needs import gpus

STEPS = 5
# PP2 runs on the pipelined engine, the others on the flat one.
LAYOUTS = {1: ["one"], 2: ["TP2", "DP2 ZeRO-1", "PP2", "CP2"]}
# Of losses, gradient norms and weights, relative. On a GPU sums are taken in another order, and in
# a few steps Adam makes of a difference in a gradient that is all rounding a thousand times more.
TOLERANCES = {
    "cpu": {"fp32": (0.0, 0.0, 0.0), "bf16": (0.0, 0.0, 0.0)},
    "cuda": {"fp32": (1e-4, 1e-3, 1e-3), "bf16": (1e-2, 5e-2, 5e-2)},
}


@pytest.mark.dist
@pytest.mark.parametrize(
    ("ranks", "device"),
    [
        (1, "cpu"),
        pytest.param(2, "cpu", marks=pytest.mark.slow),
        pytest.param(1, "cuda", marks=gpus(1)),
        pytest.param(2, "cuda", marks=gpus(2)),
    ],
)
def test_every_engine_computes_what_it_computes_on_cpus(
    ranks: int, device: str, tmp_path: Path
) -> None:
    """The first of the steps is one step. On CPUs against themselves: the same bits again."""
    cases = {
        f"{layout}, {precision}": (layout, {"precision": precision})
        for layout in LAYOUTS[ranks]
        for precision in ("fp32", "bf16")
    }
    expected = layouts.run(cases, tmp_path / "expected", STEPS, 240)
    found = layouts.run(cases, tmp_path / "found", STEPS, 240, device)
    wrong = []
    for name, outcome in found.items():
        apart = distance(outcome, expected[name])
        allowed = TOLERANCES[device][name.split(", ")[1]]
        values = (apart.loss, apart.norm, apart.weights)
        if not all(value <= most for value, most in zip(values, allowed, strict=True)):
            wrong.append(f"{name}: {apart}, allowed {allowed}")
    assert not wrong, "\n".join(wrong)
