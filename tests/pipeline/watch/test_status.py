"""What `esolm status` says of runs in every state."""

import json
import os
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esolm.pipeline.cli.main import app
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run import beats
from esolm.pipeline.run.config import load_config, to_yaml
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History
from esolm.pipeline.watch.status import run_status
from tests.pipeline.conftest import RecordedRun
from tests.processes import run_python

CONFIG = Path(__file__).parents[3] / "configs" / "run" / "demo.yaml"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory with a configuration of 120 steps, and nothing trained yet."""
    settings = [f"run.dir={tmp_path}", "data.path=unused", "train.log_every_steps=1"]
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(CONFIG, settings)))
    (tmp_path / "logs").mkdir()
    return RunDirectory(tmp_path)


def log_steps(run: RunDirectory, last: int) -> None:
    with run.metrics.open("w") as file:
        for step in range(1, last + 1):
            line = {"step": step, "loss": 9.0 / step, "tokens": 100 * step}
            line |= {"tokens_per_second": 50.0, "step_seconds": 2.0, "skipped_steps": 1}
            file.write(json.dumps(line) + "\n")
        file.write('{"step": 40, "loss": 1{"step": 40, "loss": 2.0}\n')  # torn by a full disk
        file.write('{"step": 40, "valid_loss": 5.5}\n{"step": 41, "loss": 1')


def start(run: RunDirectory) -> None:
    History(run).start(0, 0, 16, "TP2 x PP1 x DP1, ZeRO-1", 2)


def test_a_finished_run(recorded_run: RecordedRun) -> None:
    shown = CliRunner().invoke(app, ["status", str(recorded_run.path), "--json"])
    record = json.loads(shown.output)
    assert record["health"]["state"] == "done"
    assert (record["step"], record["steps"], record["tokens"]) == (12, 12, 12 * 8 * 32)
    assert (record["starts"], record["restarts"], record["rollbacks"]) == (1, 0, 1)
    assert 0 < record["start_seconds"] < 600
    assert (record["incidents"], record["last_incident"]["reason"]) == (1, "for a test")
    assert record["checkpoint"]["step"] == 12
    assert record["checkpoint"]["valid"]
    assert record["chain"] is None
    assert record["valid_loss"] != record["valid_loss_ema"]
    table = CliRunner().invoke(app, ["status", str(recorded_run.path)])
    assert "12 of 12 (100.0%)" in table.output


def test_nothing_trained_yet(run: RunDirectory) -> None:
    status = run_status(run.path)
    assert status.health.state == "new"
    assert (status.step, status.loss, status.eta_seconds, status.checkpoint) == (
        0,
        None,
        None,
        None,
    )
    shown = CliRunner().invoke(app, ["status", str(run.path)])
    assert "time left   n/a" in shown.output


def test_a_run_that_lives_then_stalls_then_dies(run: RunDirectory) -> None:
    run.lock()
    start(run)
    log_steps(run, 40)
    status = run_status(run.path)
    assert status.health.state == "running"
    assert (status.step, status.valid_loss, status.skipped_steps) == (40, 5.5, 1)
    assert status.eta_seconds == 80 * 2.0
    long_ago = time.time() - 3600
    for path in (run.metrics, run.path / ".lock"):
        os.utime(path, (long_ago, long_ago))
    assert run_status(run.path).health.state == "stalled"
    run.unlock()
    dead = run_status(run.path)
    assert dead.health.state == "failed"
    assert "without a word" in dead.health.reason
    assert not dead.resumable


def test_a_stopped_rank_is_named(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that beats, nor what an earlier start has left."""
    monkeypatch.setattr(beats, "BEAT_SECONDS", 0.05)
    run.beat(2).write_text("node3, process 7\n")
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    run.lock()
    start(run)
    log_steps(run, 40)
    beating = beats.Beat(run, 0)
    minutes_ago = time.time() - 100
    for path in (run.path / ".lock", run.beat(0)):
        os.utime(path, (minutes_ago, minutes_ago))
    os.utime(run.beat(2), (minutes_ago - 1, minutes_ago - 1))
    while beats.silence(run.beat(0)) > 50:
        time.sleep(0.01)
    assert run_status(run.path).health.state == "running"
    run.beat(1).write_text("node2, process 6\n")
    os.utime(run.beat(1), (minutes_ago, minutes_ago))
    health = run_status(run.path).health
    assert health.state == "stalled"
    named = r"no sign of life from rank 1 \(node2, process 6\) for 1\d\d s: "
    assert re.match(named, health.reason)
    assert "node1" in run.beat(0).read_text()
    beating.close()
    assert not run.beat(0).exists()


@pytest.mark.parametrize(
    ("code", "reason", "state"),
    [(85, "", "stopped"), (1, "EsolmError: a faulty link", "failed")],
)
def test_how_a_run_ended(code: int, reason: str, state: str, run: RunDirectory) -> None:
    start(run)
    start(run)
    History(run).end(17, code, reason)
    health = run_status(run.path).health
    assert health.state == state
    assert reason in health.reason
    start(run)
    status = run_status(run.path)
    assert status.health.state == "failed", "the third start ended without a word"
    assert status.restarts == 2


def test_saves_that_fail(run: RunDirectory) -> None:
    """By the log of what is being saved now; where that could not be written by what is missing."""
    log = run.logs / "rank_0.log"
    log.write_text(
        "2026-01-01 00:00:00,000 ERROR the checkpoint of step 40 failed: [Errno 28] No space\n"
        "OSError: [Errno 28] No space\n"
        "2026-01-01 00:00:01,000 ERROR the checkpoint of step 80 could not be written: the disk\n"
        "2026-01-01 00:00:02,000 ERROR the checkpoint of step 120 failed: of a start before\n"
    )
    run.lock()
    start(run)
    log_steps(run, 90)
    status = run_status(run.path)
    problem = (
        "2 saves since step 0 failed: the checkpoint of step 80 could not be written: the disk"
    )
    assert (status.health.state, status.save_problem) == ("unsaved", problem)
    assert problem in status.health.reason
    log.unlink()
    assert run_status(run.path).health.state == "running", "the second one may be under way"
    log_steps(run, 119)
    assert run_status(run.path).save_problem is None
    log_steps(run, 120)
    missing = "no checkpoint since step 0, though one is due every 40 steps"
    assert run_status(run.path).save_problem == missing
    run.unlock()
    assert missing in CliRunner().invoke(app, ["status", str(run.path)]).output


def test_looking_does_not_get_in_the_way_of_a_start(run: RunDirectory) -> None:
    """A probe holds the lock for an instant; whoever starts then waits for it."""
    assert not run.is_locked()
    run.lock()
    assert RunDirectory(run.path).is_locked()
    assert RunDirectory(run.path).is_locked(), "looking changes nothing"
    run.unlock()
    assert not run.is_locked()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run directory"):
        run_status(tmp_path)


def test_it_needs_no_torch(recorded_run: RecordedRun) -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from esolm.pipeline.cli.main import app\n"
        f"assert CliRunner().invoke(app, ['status', {str(recorded_run.path)!r}]).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & sys.modules.keys()\n"
    )
    finished = run_python("-c", script)
    assert finished.returncode == 0, finished.stderr


def test_a_profile_was_written(recorded_run: RecordedRun) -> None:
    trace = json.loads((recorded_run.path / "profile" / "rank_0.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "aten::mm" in names or "aten::addmm" in names
