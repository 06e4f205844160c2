"""The plan's bytes of communication against what running engines send each other."""

from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.cost import Machine, gpu_named
from esolm.pipeline.plan.estimate import data_bytes, exchange_bytes, message_seconds
from esolm.pipeline.plan.shapes import stage_size
from tests.dist import workers
from tests.dist.plan_worker import MODEL
from tests.dist.ranks import run_ranks

MICRO_BATCH = 2
LAYOUTS = [Layout(tp=1, pp=1, dp=2, zero=zero) for zero in (1, 2, 3)]
PIPELINE = Layout(tp=1, pp=2, dp=1, zero=1)
CONTEXT = Layout(tp=1, pp=1, dp=1, zero=1, cp=2)
TIMES_ROUND_THE_RING = {
    "allreduce_": 2,
    "_allgather_base_": 1,
    "_reduce_scatter_base_": 1,
}


@pytest.mark.dist
@pytest.mark.check
def test_the_planned_bytes_are_those_that_are_sent(tmp_path: Path) -> None:
    """Of two steps the second is counted: the first sends the initial weights to the others."""
    named = [(layout, p) for layout in (*LAYOUTS, PIPELINE, CONTEXT) for p in ("fp32", "bf16")]
    cases: list[dict[str, Any]] = [
        {
            "layout": vars(layout),
            "precision": precision,
            "model": "plan",
            "micro_batch_size": MICRO_BATCH,
        }
        for layout, precision in named
    ]
    answers = run_ranks("volumes", 2, cases, tmp_path, 400, "tests.dist.volume_worker")
    for (layout, precision), ranks in zip(named, answers, strict=True):
        for sent in ranks:
            if layout == PIPELINE:
                found = sent["send"] + sent["recv_"]
                # The embedding also passes on what adaLN is conditioned on, which is small.
                assert planned_messages(precision) == pytest.approx(found, rel=0.04)
            elif layout == CONTEXT:
                # Half of what is exchanged among two ranks stays where it is.
                found = sent["alltoall_base_"] / 2
                assert planned_exchange(precision) == pytest.approx(found, rel=0.001)
            else:
                assert set(sent) <= set(TIMES_ROUND_THE_RING)
                found = sum(TIMES_ROUND_THE_RING[name] * size for name, size in sent.items())
                expected = planned_bytes(layout, precision)
                assert expected == pytest.approx(found, rel=0.02), (layout, precision, sent)


def planned_bytes(layout: Layout, precision: str) -> float:
    parameters = stage_size(MODEL, 0, MODEL.num_layers + 2, 1).parameters
    micro_batches = workers.GLOBAL_BATCH // (MICRO_BATCH * layout.dp)
    assert micro_batches == 2, "with one, ZeRO-1 would look like ZeRO-2"
    scatters = layout.scatters(precision, offload=False)
    return data_bytes(parameters, layout.zero, precision, micro_batches, scatters)


def planned_exchange(precision: str) -> float:
    """The bytes that a rank sends the other one in a step, in all blocks."""
    found = 0.0
    for work in workers.OBJECTIVES["esolm_b"].work(workers.SEQ_LEN):
        held = workers.GLOBAL_BATCH * work.share * work.length / CONTEXT.cp
        fed = held * work.pattern.num_streams
        of_block = exchange_bytes(MODEL, CONTEXT, precision, fed, fed)
        last = exchange_bytes(MODEL, CONTEXT, precision, fed, held)
        found += (MODEL.num_layers - 1) * of_block + last
    return found


def planned_messages(precision: str) -> float:
    """The bytes of a step's messages, from the seconds that they would take."""
    machine = Machine(gpu_named("H100"), gpus_per_node=8, network=50e9, mfu=0.4)
    works = workers.OBJECTIVES["esolm_b"].work(workers.SEQ_LEN)
    rows = [work.share * work.pattern.num_streams * work.length for work in works]
    tokens = MICRO_BATCH * sum(rows)
    seconds = message_seconds(MODEL, PIPELINE, machine, precision, tokens)
    return seconds * machine.gpu.link * workers.GLOBAL_BATCH / MICRO_BATCH
