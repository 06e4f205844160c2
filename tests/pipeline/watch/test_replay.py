"""A replayed step is what the trainer fed, whatever happened to the run in between."""

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from esolm.pipeline.cli.main import app
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.watch.place import find_step
from esolm.pipeline.watch.replay import replay, row_losses
from tests.pipeline.conftest import RecordedRun

# Step -> which of the computed steps it was: 7 was refused, then 5 to 12 came on later data.
CALLS = {1: 0, 4: 3, 5: 7, 6: 8, 7: 6, 8: 10, 12: 14}


@pytest.mark.parametrize("step", CALLS)
def test_a_replayed_step_is_what_was_fed(step: int, recorded_run: RecordedRun) -> None:
    replayed = replay(recorded_run.path, step)
    fed = recorded_run.fed[CALLS[step]]
    assert len(fed) == len(replayed.micro_batches)
    for batch, tensors in zip(replayed.micro_batches, fed, strict=True):
        for again, original in zip((*batch.inputs, *batch.targets), tensors, strict=True):
            assert torch.equal(again, original)
            assert again.dtype == original.dtype
    assert replayed.place.first_sample == 8 * CALLS[step]
    known_by = {1: "start at step 0", 7: "incidents.jsonl", 12: "rollback at step 4"}
    assert known_by.get(step, "") in replayed.place.known_by


def test_without_the_history_the_newest_checkpoint_before_tells(
    recorded_run: RecordedRun, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").symlink_to(recorded_run.path / "checkpoints")
    config = load_config(recorded_run.config, [])
    place = find_step(RunDirectory(tmp_path), config, 10)
    assert (place.first_sample, place.known_by) == (96, "checkpoint step_00000008")


def test_row_losses_add_up_to_the_step_that_was_logged(recorded_run: RecordedRun) -> None:
    """Step 5 was computed with the weights of checkpoint 4, after the rollback."""
    replayed = replay(recorded_run.path, 5)
    step, losses = row_losses(recorded_run.path, replayed)
    lines = (recorded_run.path / "metrics.jsonl").read_text().splitlines()
    logged = next(x for x in map(json.loads, lines) if x["step"] == 5 and "loss" in x)
    assert step == 4
    assert math.isclose(sum(losses), logged["loss"], rel_tol=1e-5)
    assert len(losses) == 8


def test_the_command_shows_rows_times_keys_and_text(recorded_run: RecordedRun) -> None:
    shown = CliRunner().invoke(app, ["replay", str(recorded_run.path), "7", "--text", "--json"])
    record = json.loads(shown.output)
    assert record["known_by"] == "incidents.jsonl"
    assert record["draws"]["time"] == 2
    assert [row["sample"] for row in record["rows"]] == list(range(48, 56))
    diffusion = [row["t"] for row in record["rows"] if row["term"] == "diffusion"]
    assert all(slot / 4 <= t[0] <= (slot + 1) / 4 + 1e-3 for slot, t in enumerate(diffusion))
    assert len(diffusion) == 4
    assert all(row["t"] == [] for row in record["rows"] if row["term"] == "sequential")
    assert all(isinstance(row["text"], str) for row in record["rows"])
    table = CliRunner().invoke(app, ["replay", str(recorded_run.path), "12"])
    assert "samples 112 to 119, known by the rollback at step 4" in table.output


def test_a_step_that_cannot_be(recorded_run: RecordedRun) -> None:
    with pytest.raises(ConfigError, match="counted from 1"):
        replay(recorded_run.path, 0)
    with pytest.raises(ConfigError, match="no run directory"):
        replay(recorded_run.path / "logs", 3)
