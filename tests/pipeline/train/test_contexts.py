"""`train.context_schedule`: contexts that grow within a run, exact in every restart."""

from pathlib import Path

import pytest
import torch

from esolm.model.columns import Column
from esolm.model.documents import document_of, place_of
from esolm.model.objectives import VocabularyIds
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.contexts import ContextSection, context_at, context_problems
from esolm.pipeline.run.experiment import build_objective
from esolm.pipeline.train.guards import SpikeGuard
from esolm.pipeline.watch.replay import replay
from tests.e2e.runs import write_config
from tests.pipeline.train.test_initial_weights import lines, run_all

SCHEDULE = "train.context_schedule=[{until_step: 2, length: 8}, {until_step: 3, length: 16}]"


def schedule_of(*entries: tuple[int, int]) -> list[ContextSection]:
    return [ContextSection(*entry) for entry in entries]


def test_the_context_of_a_step() -> None:
    schedule = schedule_of((2, 8), (5, 16))
    assert [context_at(schedule, step) for step in range(1, 8)] == [8, 8, 16, 16, 16, 0, 0]
    assert context_at([], 1) == 0


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([(2, 8), (2, 16)], "until_step must rise from entry to entry, and is 2, 2"),
        ([(2, 16), (3, 8)], "length must rise from entry to entry, and is 16, 8"),
        ([(2, 12)], "train.context_schedule[0].length is 12; it must divide train.seq_len 32"),
        ([(2, 8), (3, 32)], "train.context_schedule[1].length is 32; it must divide"),
        ([(0, 8)], "train.context_schedule[0].until_step is 0; it must be at least 1"),
        ([(2, -4)], "train.context_schedule[0].length is -4; it must be at least 1"),
    ],
)
def test_what_a_schedule_must_be(entries: list[tuple[int, int]], says: str) -> None:
    assert context_problems(schedule_of((1, 4)), 32) == []
    [problem] = context_problems(schedule_of(*entries), 32)
    assert says in problem


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["objective.name=ar"], "train.context_schedule needs a token"),
        (["objective.name=bd3lm"], "train.context_schedule and objective.keep_first"),
        (
            ["objective.name=bd3lm", "objective.keep_first=false", "objective.block_size=16"],
            "train.context_schedule: objective.block_size 16 does not divide a context of 8 tokens",
        ),
        (["objective.name=ar", "objective.prepend=mask"], None),
        (["objective.name=bd3lm", "objective.keep_first=false"], None),
        ([], None),
    ],
)
def test_objectives_refuse_it_as_they_refuse_separate_documents(
    overrides: list[str], says: str | None, tmp_path: Path
) -> None:
    config = load_config(write_config(tmp_path, tmp_path), [SCHEDULE, *overrides])
    objective, problems = build_objective(config, VocabularyIds(99, 3, 1, 2))
    assert objective is not None
    assert objective.context == 0, "validation and exports take whole rows"
    assert [says in problem for problem in problems] == ([True] if says else [])


def test_the_guard_forgets_what_it_measured_under_another_context() -> None:
    guard = SpikeGuard(4, 6.0, {"batch": 8}, {})
    guard.measure_under(context=8)
    guard.restore({"losses": [1.0], "norms": [2.0], "measured": {"batch": 8, "context": 8}})
    guard.measure_under(context=8)
    assert guard.state()["losses"] == [1.0]
    guard.measure_under(context=16)
    assert guard.state() == {"losses": [], "norms": [], "measured": {"batch": 8, "context": 16}}


@pytest.mark.dist
def test_a_run_that_stops_where_the_context_changes_goes_on_as_if_it_had_not(
    dataset: Path, tmp_path: Path
) -> None:
    config = str(write_config(tmp_path, dataset))
    common = ["parallel.tp=1", "optimizer.schedule=constant", "train.valid_every_steps=4"]

    def start(name: str, steps: int, *overrides: str) -> list[str]:
        return [config, f"run.dir={tmp_path / name}", f"train.steps={steps}", *common, *overrides]

    run_all(
        [
            start("plain", 3),
            start("whole", 5, SCHEDULE),
            *(start("cut", steps, SCHEDULE) for steps in (2, 3, 5)),
        ],
        1,
    )
    whole, cut, plain = (lines(tmp_path / name) for name in ("whole", "cut", "plain"))
    losses = [{x["step"]: x["loss"] for x in run if "loss" in x} for run in (whole, cut, plain)]
    assert losses[0] == losses[1]
    assert losses[0][3] != losses[2][3]
    lengths = {x["step"]: x["context_length"] for x in cut if "context_length" in x}
    assert lengths == {1: 8, 2: 8, 3: 16, 4: 32, 5: 32}
    assert not any("context_length" in x for x in plain)
    first = [next(x["valid_loss"] for x in run if x["step"] == 0) for run in (whole, plain)]
    assert first[0] == first[1], "validation is of whole rows"
    one, other = (CheckpointReader(tmp_path / name) for name in ("whole", "cut"))
    assert one.step == other.step == 5
    for state in ("weights", "ema", "exp_avg_sq"):
        pairs = zip(one.tensors(state).items(), other.tensors(state).items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    for step, length in lengths.items():
        _, positions, rows = replay(tmp_path / "cut", step).micro_batches[0].inputs
        if length == 32:
            assert not rows[:, Column.SEPARATE].any()
            assert int(positions.max()) == 31
        else:
            assert int(place_of(positions).max()) == length - 1
            assert int(document_of(positions).max()) == 32 // length - 1
