"""Long drills, outside `make test` and `make check`: `make drill`."""

import random
import time
from pathlib import Path

import pytest

from esolm.pipeline.watch.status import run_status
from tests.e2e.runs import finish, last_step, losses, start, states, wait_until, write_config

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(3600)]

LAYOUTS = [
    ["--ranks", "1", "parallel.tp=1"],
    ["--ranks", "2", "parallel.tp=2"],
    ["--ranks", "2", "parallel.tp=2", "parallel.sequence=true"],
    ["--ranks", "2", "parallel.tp=1", "parallel.pp=2"],
    ["--ranks", "2", "parallel.tp=1", "parallel.cp=2", "parallel.zero=3"],
    ["--ranks", "2", "parallel.tp=1", "parallel.zero=2"],
    ["--ranks", "2", "parallel.tp=1", "parallel.zero=3"],
    ["--ranks", "4", "parallel.tp=2", "parallel.pp=2"],
    ["--ranks", "4", "parallel.tp=2", "parallel.zero=3"],
]
KILLS, STEPS = 20, 400
# At 1e-3 this small network's gradient spikes to seven times its norm after 200 steps, and there
# a difference of 1e-7, which another layout's order of additions makes, grows to 1e-3 by itself.
RATE = "optimizer.lr=1.0e-4"


def test_a_run_killed_twenty_times_lies_on_the_uninterrupted_one(
    dataset: Path, tmp_path: Path
) -> None:
    """Another layout each time; every step is logged once, so no sample is repeated or lost."""
    reference = write_config(tmp_path / "reference", dataset, steps=STEPS, save_every=10)
    finish(start("train", str(reference), RATE, "parallel.tp=1"), 0, timeout=1200)
    config = write_config(tmp_path / "killed", dataset, steps=STEPS, save_every=10)
    run, chance = tmp_path / "killed" / "run", random.Random(7)
    to_first_step = []
    for kill in range(KILLS):
        arguments = ["train", str(config), RATE, *LAYOUTS[kill % len(LAYOUTS)]]
        seconds = _run_and_kill(arguments, run, chance.randint(5, 25))
        to_first_step.append((arguments[4], seconds))
    finish(start("train", str(config), RATE, "--ranks", "2", "parallel.tp=2"), 0, timeout=1200)
    two = [seconds for ranks, seconds in to_first_step if ranks == "2"]
    print(f"start to first step, 2 ranks: {min(two):.1f} to {max(two):.1f} s")
    expected, got = losses(tmp_path / "reference" / "run"), losses(run)
    assert [step for step, _ in got] == list(range(1, STEPS + 1))
    worst = max(abs(a - b) / abs(b) for (_, a), (_, b) in zip(got, expected, strict=True))
    print(f"largest relative difference of a loss: {worst:.2e}")
    assert worst < 1e-5
    ends = states(run), states(tmp_path / "reference" / "run")
    assert all((ends[0][name] - ends[1][name]).abs().max() < 1e-4 for name in ends[0])


def _run_and_kill(arguments: list[str], run: Path, steps: int) -> float:
    """Lets a run come some steps further, then kills all of it; its seconds to its first step."""
    before = last_step(run)
    process = start(*arguments)
    # The metrics of steps after the checkpoint are dropped when the run resumes.
    wait_until(lambda: last_step(run) != before or process.poll() is not None, timeout=120)
    assert process.poll() is None, "the run ended by itself"
    wait_until(lambda: last_step(run) >= before + steps, timeout=120)
    seconds = run_status(run).start_seconds
    assert seconds is not None
    process.kill()
    process.wait()
    time.sleep(1.0)  # the kernel takes the ranks down after their launcher
    return seconds
