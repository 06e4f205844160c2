"""Runs that are killed, stopped and opened twice."""

import signal
from pathlib import Path

import psutil
import pytest

from pipeline.checkpoint.commit import committed, newest_valid
from tests.e2e.runs import (
    different,
    finish,
    last_step,
    losses,
    ranks_of,
    start,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs, large enough that its checkpoints take a moment."""
    config = write_config(tmp_path_factory.mktemp("undisturbed"), dataset, hidden_size=512)
    finish(start("train", str(config), "--ranks", "2"), 0)
    return config.parent / "run"


def test_kill_9_during_a_checkpoint_leaves_the_previous_one_in_force(
    dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, dataset, hidden_size=512)
    run = tmp_path / "run"
    process = start("train", str(config), "--ranks", "2")
    staging = run / "checkpoints" / "step_00000008.tmp"
    wait_until(staging.exists, pause=0.0005)
    ranks_of(process)[1].kill()
    finish(process, 1)
    assert not staging.with_suffix("").exists(), "committed before the kill: enlarge the network"
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    assert newest[1].step == 4
    finish(start("train", str(config), "--ranks", "2"), 0)
    assert different(run, undisturbed) == []
    assert losses(run) == losses(undisturbed)
    assert not list((run / "checkpoints").glob("*.tmp"))
    assert [path.name for path in committed(run / "checkpoints")] == [
        "step_00000008",
        "step_00000012",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_ends_in_a_checkpoint_and_85(
    number: signal.Signals, dataset: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, dataset, steps=100_000, save_every=100_000)
    run = tmp_path / "run"
    process = start("train", str(config), "--ranks", "2")
    wait_until(lambda: last_step(run) >= 3)
    if number is signal.SIGUSR1:  # to one rank only: the others learn of it
        ranks_of(process)[1].send_signal(number)
    else:  # the launcher hands it on
        process.send_signal(number)
    finish(process, 85)
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    assert newest[1].step == last_step(run)
    assert not (run / "DONE").exists()


def test_stopped_and_resumed_is_undisturbed(dataset: Path, tmp_path: Path) -> None:
    reference = write_config(tmp_path / "reference", dataset, steps=60, save_every=100)
    finish(start("train", str(reference), "--ranks", "2"), 0)
    config = write_config(tmp_path / "stopped", dataset, steps=60, save_every=100)
    run = config.parent / "run"
    process = start("train", str(config), "--ranks", "2")
    wait_until(lambda: last_step(run) >= 3)
    process.send_signal(signal.SIGTERM)
    finish(process, 85)
    assert last_step(run) < 60
    finish(start("train", str(config), "--ranks", "2"), 0)
    assert different(run, config.parent.parent / "reference" / "run") == []
    assert losses(run) == losses(config.parent.parent / "reference" / "run")
    assert (run / "DONE").exists()
    started_again = finish(start("train", str(config), "--ranks", "2"), 0)
    assert "step" not in started_again


def test_ranks_die_with_their_launcher_and_a_run_has_one_job(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, dataset, steps=100_000)
    run = tmp_path / "run"
    process = start("train", str(config), "--ranks", "2")
    wait_until(lambda: last_step(run) >= 1)
    second = finish(start("train", str(config), "parallel.tp=1"), 64)
    assert "in use by another job" in second
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(_alive(rank) for rank in ranks), timeout=10)


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
