"""Runs that are killed, stopped and opened twice."""

import re
import signal
from pathlib import Path

import psutil
import pytest

from esolm.pipeline.checkpoint.commit import newest_valid, read_manifest
from esolm.pipeline.checkpoint.reader import CheckpointReader
from tests.e2e.runs import (
    different,
    finish,
    last_step,
    losses,
    ranks_of,
    start,
    start_faulty,
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


@pytest.mark.check
def test_killed_at_every_place_of_a_save(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    """One run, killed four times: the last committed checkpoint is in force, nothing else is."""
    config, run = write_config(tmp_path, dataset, hidden_size=512), tmp_path / "run"
    _kill_the_last_rank_while_it_writes(config, run)
    for kind, left, in_force in (
        ("killed_before_the_manifest", ["step_00000004", "step_00000008.tmp"], 4),
        ("killed_before_the_rename", ["step_00000004", "step_00000008.tmp"], 4),
        ("killed_during_retention", ["step_00000004.tmp", "step_00000008", "step_00000012"], 12),
    ):
        first, second = start_faulty(kind, config, ranks=2)
        finish(first, -signal.SIGKILL)
        finish(second, 1)
        _expect(run, left, in_force)
        has_manifest = (run / "checkpoints" / left[-1] / "manifest.json").exists()
        assert has_manifest == (kind != "killed_before_the_manifest"), "killed at another place"
    finish(start("train", str(config), "--ranks", "2"), 0)
    assert "step_00000004.tmp was never committed" in (run / "logs" / "rank_0.log").read_text()
    _expect(run, ["step_00000008", "step_00000012"], in_force=12)
    assert different(run, undisturbed) == []
    assert losses(run) == losses(undisturbed)


def _kill_the_last_rank_while_it_writes(config: Path, run: Path) -> None:
    first, last = start_faulty("killed_while_writing", config, ranks=2)
    finish(last, -signal.SIGKILL)
    finish(first, 1)
    # Rank 0 may have lived to clear up.
    staging = run / "checkpoints" / "step_00000008.tmp"
    _expect(run, ["step_00000004", *([staging.name] if staging.exists() else [])], in_force=4)


def _expect(run: Path, left: list[str], in_force: int) -> None:
    """What lies in `checkpoints/`, and which step a resuming run and an export take."""
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == left
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    assert newest[1].step == CheckpointReader(run).step == in_force


@pytest.mark.parametrize(
    ("ranks", "victim", "overrides"),
    [
        pytest.param(2, 0, [], marks=pytest.mark.check),
        (2, 1, []),
        pytest.param(4, 2, ["parallel.pp=2"], marks=pytest.mark.slow),
        pytest.param(4, 1, ["parallel.zero=3"], marks=pytest.mark.slow),
    ],
)
def test_kill_9_of_any_rank_ends_the_others_and_the_run_resumes(
    ranks: int, victim: int, overrides: list[str], dataset: Path, tmp_path: Path
) -> None:
    """Ranks without a launcher, as under srun: each finds out by itself that one is gone."""
    config = write_config(tmp_path, dataset, steps=100_000)
    processes = start_faulty("none", config, *overrides, ranks=ranks)
    wait_until(lambda: last_step(tmp_path / "run") >= 6)
    processes[victim].kill()
    for rank, process in enumerate(processes):
        output = finish(process, -signal.SIGKILL if rank == victim else 1, timeout=30)
        if rank != victim:
            assert "Connection" in output, output[-2000:]
    newest = newest_valid(tmp_path / "run" / "checkpoints")
    assert newest is not None
    steps = newest[1].step + 3
    finish(start("train", str(config), f"train.steps={steps}", "--ranks", "2"), 0)
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, steps + 1))


@pytest.mark.parametrize(
    ("number", "everyone"),
    [
        (signal.SIGUSR1, False),
        pytest.param(signal.SIGUSR1, True, marks=pytest.mark.check),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.check),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.check),
    ],
)
def test_a_stop_signal_ends_in_one_checkpoint_and_85(
    number: signal.Signals, everyone: bool, dataset: Path, tmp_path: Path
) -> None:
    """To all ranks or to one, each with a thread in the middle of reading a batch."""
    config = write_config(tmp_path, dataset, steps=100_000, save_every=100_000)
    run = tmp_path / "run"
    processes = start_faulty("slow_reader", config, "train.valid_every_steps=0", ranks=2)
    wait_until(lambda: last_step(run) >= 3)
    for process in processes if everyone else processes[1:]:
        process.send_signal(number)
    for process in processes:
        finish(process, 85, timeout=30)
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert read_manifest(checkpoint).step == last_step(run)
    assert not (run / "DONE").exists()


@pytest.mark.check
def test_stopped_and_resumed_is_undisturbed(dataset: Path, tmp_path: Path) -> None:
    reference = write_config(tmp_path / "reference", dataset, steps=60, save_every=100)
    said = finish(start("train", str(reference), "--ranks", "2"), 0)
    assert " INFO cpu: " in said.splitlines()[0], "nothing of other libraries stands in front"
    config = write_config(tmp_path / "stopped", dataset, steps=60, save_every=100)
    run = config.parent / "run"
    process = start("train", str(config), "--ranks", "2")
    wait_until(lambda: last_step(run) >= 3)
    process.send_signal(signal.SIGTERM)
    said = finish(process, 85)
    assert "stopped on request at step" in said.splitlines()[-1], "no error follows"
    assert last_step(run) < 60
    finish(start("train", str(config), "--ranks", "2"), 0)
    assert different(run, config.parent.parent / "reference" / "run") == []
    assert losses(run) == losses(config.parent.parent / "reference" / "run")
    assert (run / "DONE").exists()
    started_again = finish(start("train", str(config), "--ranks", "2"), 0)
    assert "is complete: all 60 steps are done" in started_again
    assert "layout" not in started_again, "nothing was started"


@pytest.mark.check
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


@pytest.mark.check
def test_a_killed_rank_is_named(dataset: Path, tmp_path: Path) -> None:
    process = start("train", str(write_config(tmp_path, dataset, steps=100_000)), "--ranks", "2")
    wait_until(lambda: last_step(tmp_path / "run") >= 1)
    killed = ranks_of(process)[1]
    killed.kill()
    last_line = finish(process, 1).splitlines()[-1]
    assert re.fullmatch(
        rf"error: rank \d \(process {killed.pid}\) was killed by SIGKILL", last_line
    )


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


SLOW_START = """
import os, pathlib, time
if "ESOLM_LAUNCHER_PID" in os.environ:
    time.sleep(1)
    pathlib.Path(__file__).with_name("starts").touch()
    time.sleep(2)
"""


@pytest.mark.check
def test_a_launcher_that_is_stopped_before_its_ranks_start_says_resume_me(
    dataset: Path, tmp_path: Path
) -> None:
    """Once while it still imports, once while the interpreters of the ranks start."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    config = write_config(tmp_path, dataset)
    for ready in (_notes_signals, lambda process: (tmp_path / "starts").exists()):
        process = start("train", str(config), "--ranks", "2", packages=(tmp_path,))
        wait_until(lambda process=process, ready=ready: ready(process))
        process.send_signal(signal.SIGTERM)
        finish(process, 85)
    assert not (tmp_path / "run" / "DONE").exists()


def _notes_signals(process: psutil.Process) -> bool:
    """Whether the process catches SIGTERM by now, by the kernel's word."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)
