"""The order of the micro-batches of a step, and for how long the stages of 1F1B then wait."""

from typing import Any

import pytest
import torch
from deepspeed.runtime.pipe import schedule

from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.pipe import one_short_then_longest_first

FORWARD, BACKWARD = schedule.ForwardPass, schedule.BackwardPass


def micro_batch(rows: int, tokens: int) -> MicroBatch:
    fed = torch.zeros(rows, tokens, dtype=torch.int64)
    nothing = torch.zeros(0)
    return MicroBatch((fed, fed, fed), (nothing, nothing, nothing), f"{tokens}")


def passes(micro_batches: int, stages: int, stage: int) -> list[tuple[type, int]]:
    """What a stage of DeepSpeed's schedule computes, in order: (kind of pass, micro-batch)."""
    commands = schedule.TrainSchedule(micro_batches, stages, stage).steps()
    kinds = [type(c) for step in commands for c in step if isinstance(c, (FORWARD, BACKWARD))]
    counts: dict[type, int] = {FORWARD: 0, BACKWARD: 0}
    found = []
    for kind in kinds:
        found.append((kind, counts[kind]))
        counts[kind] += 1
    return found


def seconds(costs: list[float], stages: int) -> float:
    """How long a step takes where a forward pass costs so much and a backward pass twice that."""
    ends: dict[tuple[Any, int, int], float] = {}
    clocks = [0.0] * stages
    todo = {stage: passes(len(costs), stages, stage) for stage in range(stages)}
    while any(todo.values()):
        for stage, waiting in todo.items():
            while waiting:
                kind, number = waiting[0]
                before = stage - 1 if kind is FORWARD else stage + 1
                if 0 <= before < stages and (kind, before, number) not in ends:
                    break
                ready = max(clocks[stage], ends.get((kind, before, number), 0.0))
                clocks[stage] = ready + costs[number] * (1 if kind is FORWARD else 2)
                ends[kind, stage, number] = clocks[stage]
                waiting.pop(0)
    return max(clocks)


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("number", [8, 16])
@pytest.mark.parametrize("longer", [1.5, 2.0])
def test_a_step_waits_for_less_than_the_plan_has(longer: float, number: int, stages: int) -> None:
    """In units of a forward pass of the shorter kind."""
    short, long = [1.0] * number, [longer] * number
    work, planned = 3 * sum(short + long), (stages - 1) * 3 * longer

    def waiting(costs: list[float]) -> float:
        return seconds(costs, stages) - work

    assert waiting(short + long) == pytest.approx(planned)
    assert waiting(long + short) == pytest.approx(planned)
    alternating = [cost for pair in zip(short, long, strict=True) for cost in pair]
    assert waiting(alternating) > 1.2 * planned
    ordered = waiting(short[:1] + long + short[1:])
    assert 0.8 * planned < ordered < 0.97 * planned


def test_the_longest_follow_a_short_one_and_others_keep_their_order() -> None:
    drawn = [micro_batch(2, tokens) for tokens in (8, 8, 14, 16, 14)]
    ordered = one_short_then_longest_first(drawn)
    assert [batch.inputs[0].shape[1] for batch in ordered] == [8, 16, 14, 14, 8]
    assert ordered[2] is drawn[2]
    assert ordered[4] is drawn[0]
    assert one_short_then_longest_first(drawn[:1]) == drawn[:1]
