"""A run of several sources through the real command line."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.checkpoint.commit import newest_valid
from tests.e2e.runs import (
    WEIGHTS,
    different,
    finish,
    last_step,
    losses,
    sources_of,
    start,
    wait_until,
    write_mixture,
)
from tests.processes import run_python

pytestmark = pytest.mark.dist


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.check
def test_killed_and_resumed_with_other_replicas(
    source_folders: dict[str, Path], tmp_path: Path
) -> None:
    undisturbed = write_mixture(tmp_path / "undisturbed", source_folders)
    finish(start("train", str(undisturbed), "parallel.tp=1"), 0)
    config, run = write_mixture(tmp_path, source_folders), tmp_path / "run"
    launcher = start("train", str(config), "parallel.tp=1", "--ranks", "2", "train.steps=4000")
    wait_until(lambda: last_step(run) >= 9)
    launcher.send_signal(signal.SIGKILL)
    finish(launcher, -signal.SIGKILL)
    # As many as the killed run has saved, however quick it was.
    found = newest_valid(run / "checkpoints")
    assert found is not None
    steps = max(12, found[1].step)
    finish(start("train", str(config), "parallel.tp=1", f"train.steps={steps}"), 0)
    mine, theirs = dict(losses(run)), dict(losses(undisturbed.parent / "run"))
    assert sorted(mine) == list(range(1, steps + 1))
    for step in range(1, 13):
        assert mine[step] == pytest.approx(theirs[step], rel=1e-5)
    lines = lines_of(undisturbed.parent / "run")
    by_source = [
        {line["step"]: line for line in each if "loss" in line} for each in (lines_of(run), lines)
    ]
    for step in range(1, 13):
        found, expected = (
            {f"loss/{name}": each[step].get(f"loss/{name}", 0.0) for name in WEIGHTS}
            for each in by_source
        )
        assert found == pytest.approx(expected, rel=1e-5)
        assert any(found.values())
    validations = [line for line in lines if "valid_loss" in line]
    assert [line["step"] for line in validations] == [0, 6, 12]
    for line in validations:
        for name in ("valid_loss", "valid_loss_ema"):
            mean = sum(weight * line[f"{name}/{source}"] for source, weight in WEIGHTS.items())
            assert line[name] == pytest.approx(mean, rel=1e-12)
    assert len({validations[2][f"valid_loss/{source}"] for source in WEIGHTS}) == 3
    last = [line for line in lines if "loss" in line][-1]
    assert all(last[f"epochs/{source}"] > 0 for source in WEIGHTS)


@pytest.mark.check
def test_sources_change_on_the_way(source_folders: dict[str, Path], tmp_path: Path) -> None:
    config, run = write_mixture(tmp_path, source_folders), tmp_path / "run"
    train = ["train", str(config), "parallel.tp=1"]
    finish(start(*train, "train.steps=4"), 0)
    other = sources_of(source_folders, a=0.5, b=0.2, d=0.3)
    text = finish(start(*train, other), 64)
    for part in ("source 'd'", "is new", "source 'c'", "is gone", "source 'b': 0.3 of the samples "
                 "before, 0.2 now", "data.change_sources=true"):  # fmt: skip
        assert part in text
    text = finish(start(*train, other, "data.change_sources=true", "train.steps=8"), 0)
    assert "from sample 16 on: source 'd'" in text
    found = newest_valid(run / "checkpoints")
    assert found is not None
    state = found[1].run["data"]
    assert [part["first_sample"] for part in state["segments"]] == [0, 16]
    assert [share["name"] for share in state["segments"][1]["shares"]] == ["a", "b", "d"]
    # Once it is recorded the option is needed no more; another one in its place is the same run.
    finish(start(*train, other), 0)
    straight = write_mixture(tmp_path / "straight", source_folders)
    again = ["train", str(straight), "parallel.tp=1"]
    finish(start(*again, "train.steps=4"), 0)
    finish(start(*again, other, "data.change_sources=true"), 0)
    assert different(run, tmp_path / "straight" / "run") == []
    for step in (2, 6):  # before and after
        replayed = run_python("-m", "esolm", "replay", str(run), str(step), "--json")
        assert replayed.returncode == 0, replayed.stderr
        samples = [row["sample"] for row in json.loads(replayed.stdout)["rows"]]
        assert samples == list(range(4 * step - 4, 4 * step))
