from pathlib import Path

import pytest
import torch

from esolm.pipeline.run.step_range import parse_steps, steps_problems
from esolm.pipeline.train.profiling import StepProfiler


def test_steps_that_are_asked_for() -> None:
    assert list(parse_steps("10-12")) == [10, 11, 12]
    assert not parse_steps("")
    assert steps_problems("3-3") == []


@pytest.mark.parametrize("text", ["613", "0-2", "5-4", "a-b", "3", "1-2-3"])
def test_what_names_no_steps_is_a_problem(text: str) -> None:
    (problem,) = steps_problems(text)
    assert "train.profile_steps" in problem
    assert "FIRST-LAST" in problem


def test_only_these_steps_are_in_the_trace(tmp_path: Path) -> None:
    trace = tmp_path / "profile" / "rank_0.json"
    profiler = StepProfiler(parse_steps("2-3"), trace)
    for step, function in enumerate((torch.sin, torch.cos, torch.tan, torch.exp), start=1):
        profiler.before(step)
        function(torch.ones(3))
    profiler.close()
    content = trace.read_text()
    assert [name in content for name in ("aten::sin", "aten::cos", "aten::tan", "aten::exp")] == [
        False,
        True,
        True,
        False,
    ]
