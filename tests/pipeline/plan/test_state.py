"""The plan's memory against the tensors of running engines."""

from pathlib import Path
from typing import Any

import pytest

from esolm.model.flops import layer_costs
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.shapes import stage_size
from esolm.pipeline.plan.stages import stage_bounds
from esolm.pipeline.plan.state import StateBytes, state_bytes
from tests.dist import workers
from tests.dist.plan_worker import MODEL
from tests.dist.ranks import run_ranks
from tests.gpu.needs import gpus

TOLERANCE = 0.1
LAYOUTS = {
    1: {
        "single": Layout(tp=1, pp=1, dp=1, zero=1),
        "single, ZeRO-2": Layout(tp=1, pp=1, dp=1, zero=2),
        "single, ZeRO-3": Layout(tp=1, pp=1, dp=1, zero=3),
    },
    2: {
        "TP2": Layout(tp=2, pp=1, dp=1, zero=1),
        "TP2+SP": Layout(tp=2, pp=1, dp=1, zero=1, sequence=True),
        "TP2 ZeRO-2": Layout(tp=2, pp=1, dp=1, zero=2),
        "TP2 ZeRO-3": Layout(tp=2, pp=1, dp=1, zero=3),
        "PP2": Layout(tp=1, pp=2, dp=1, zero=1),
        "DP2 ZeRO-1": Layout(tp=1, pp=1, dp=2, zero=1),
        "DP2 ZeRO-2": Layout(tp=1, pp=1, dp=2, zero=2),
        "DP2 ZeRO-3": Layout(tp=1, pp=1, dp=2, zero=3),
        "CP2 ZeRO-2": Layout(tp=1, pp=1, dp=1, zero=2, cp=2),
    },
    4: {
        "TP2 x PP2": Layout(tp=2, pp=2, dp=1, zero=1),
        "PP2 x DP2": Layout(tp=1, pp=2, dp=2, zero=1),
        "TP2 x DP2 ZeRO-3": Layout(tp=2, pp=1, dp=2, zero=3),
    },
}


def planned(layout: Layout, precision: str, rank: int) -> StateBytes:
    works = workers.OBJECTIVES["esolm_b"].work(workers.SEQ_LEN)
    stage = rank // (layout.tp * layout.copies)
    first, end = stage_bounds(layer_costs(MODEL, works), layout.pp)[stage]
    return state_bytes(stage_size(MODEL, first, end, layout.tp), layout, precision)


@pytest.mark.dist
@pytest.mark.check
@pytest.mark.parametrize(
    ("num_ranks", "device"),
    [
        (1, "cpu"),
        (2, "cpu"),
        pytest.param(4, "cpu", marks=pytest.mark.slow),
        pytest.param(1, "cuda", marks=gpus(1)),
        pytest.param(2, "cuda", marks=gpus(2)),
    ],
)
def test_weights_gradients_optimizer_and_average_are_planned_within_a_tenth(
    num_ranks: int, device: str, tmp_path: Path
) -> None:
    """On a CPU every storage is counted, on a GPU it is what the allocator has handed out."""
    named = [(name, p) for name in LAYOUTS[num_ranks] for p in ("fp32", "bf16")]
    cases: list[dict[str, Any]] = [
        {
            "layout": vars(LAYOUTS[num_ranks][name]),
            "precision": p,
            "model": "plan",
            "micro_batch_size": 2,
            "recompute": "full",  # a pipeline's activations would show
        }
        for name, p in named
    ]
    worker = "tests.dist.plan_worker"
    answers = run_ranks("measure", num_ranks, cases, tmp_path, 400, worker, device)
    wrong = []
    for (name, precision), answer in zip(named, answers, strict=True):
        for rank, measured in enumerate(answer):
            plan = planned(LAYOUTS[num_ranks][name], precision, rank)
            # DeepSpeed's fixed buffer dwarfs a small network: what is left must agree without it.
            pairs = {
                part: (getattr(plan, part), measured[part])
                for part in ("weights", "master", "moments", "ema")
            }
            expected_peak = plan.peak() - plan.bucket
            layout = LAYOUTS[num_ranks][name]
            if device == "cpu" and layout.copies > 1 and layout.scatters(precision, offload=False):
                # gloo sums a copy of what it scatters, here all of it; NCCL does it in place.
                expected_peak = plan.held + plan.gradients
            pairs["peak"] = (expected_peak, measured["peak"] - plan.bucket)
            wrong += [
                f"{name}, {precision}, rank {rank}: {part} planned {expected}, measured {found}"
                for part, (expected, found) in pairs.items()
                if abs(expected - found) > TOLERANCE * found
            ]
    assert not wrong, "\n".join(wrong)
