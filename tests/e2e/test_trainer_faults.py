"""Things that go wrong inside a run: a hung rank, a full disk, bad numbers, damaged checkpoints."""

import json
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from esolm.pipeline.checkpoint.commit import committed, newest_valid, read_manifest
from tests.e2e.runs import different, finish, losses, start, start_faulty, write_config

pytestmark = pytest.mark.dist


@pytest.mark.check
def test_a_hung_rank_leaves_the_stacks_of_every_rank(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, dataset, steps=100)
    processes = start_faulty("hang", config, "train.timeout_minutes=0.2", ranks=2)
    for process in processes:
        finish(process, 1)
    for rank in (0, 1):
        stacks = (tmp_path / "run" / "logs" / f"stacks_{rank}.txt").read_text()
        assert "trainer.py" in stacks
        trace = pickle.loads((tmp_path / "run" / "logs" / f"nccl_trace_rank_{rank}").read_bytes())
        assert trace["entries"], "the last collectives of every rank"
    assert "in never" in stacks, "the stack of rank 1 shows where it hangs"
    assert newest_valid(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.check
def test_a_rank_that_cannot_leave_is_ended(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, dataset)
    options = ["parallel.tp=1", "train.timeout_minutes=0.14"]
    (process,) = start_faulty("never_leaves", config, *options)
    finish(process, 1)
    assert "in shutdown_processes" in (tmp_path / "run" / "logs" / "stacks_0.txt").read_text()
    (end,) = (tmp_path / "run" / "ends.jsonl").read_text().splitlines()
    assert "the shard is gone" in end


@pytest.mark.check
def test_long_checks_are_not_taken_for_a_hang(dataset: Path, tmp_path: Path) -> None:
    """Both the two files of the checkpoint and the ten batches take longer than the watchdog."""
    config = write_config(tmp_path, dataset, steps=4)
    options = ["parallel.tp=1", "train.valid_every_steps=0"]
    finish(start("train", str(config), *options), 0)
    options = ["parallel.tp=1", "train.steps=5", "train.valid_every_steps=5"]
    options += ["train.valid_samples=40", "train.valid_ema=false", "train.timeout_minutes=0.14"]
    (process,) = start_faulty("slow_checks", config, *options)
    assert "at step 4" in finish(process, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_stops_the_run_at_its_end(
    dataset: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of this network has 6 MB, and the disk 9, which something else then fills.

    Figures are lost, but the run goes on, for there may be room again at the next checkpoint.
    """
    monkeypatch.setenv("FILL", str(small_disk / "fill"))
    config = write_config(small_disk, dataset, steps=12, save_every=4)
    options = ["parallel.tp=1", "data.prefetch=1", "checkpoint.asynchronous=false"]
    (process,) = start_faulty("full_disk", config, *options)
    output = finish(process, 1)
    assert "the checkpoint of step 12 could not be written: No space left on device" in output
    assert "unexpected pos" not in output.splitlines()[-1]
    assert "metrics.jsonl cannot be written" in output
    assert "the checkpoint of step 12 could not be written" in output
    found = newest_valid(small_disk / "run" / "checkpoints")
    assert found is not None
    assert found[1].step == 4
    left = sorted(str(path) for path in (small_disk / "run" / "checkpoints").rglob("*"))
    assert len(left) == 4, f"one directory with three files, not {left}"


def test_an_infinite_loss_is_skipped_or_rolled_back(dataset: Path, tmp_path: Path) -> None:
    incidents = {}
    for policy in ("skip", "rollback"):
        config = write_config(tmp_path / policy, dataset, steps=10)
        options = ["parallel.tp=1", f"train.spike_policy={policy}"]
        (process,) = start_faulty("infinite_loss", config, *options)
        finish(process, 0)
        run = tmp_path / policy / "run"
        incidents[policy] = [
            json.loads(x) for x in (run / "incidents.jsonl").read_text().splitlines()
        ]
        assert [step for step, _ in losses(run)] == list(range(1, 11)), policy
        found = newest_valid(run / "checkpoints")
        assert found is not None
        state = found[1].run
        assert state["step"] == 10
        # A roll-back from step 7 to the checkpoint at 4 goes on with the data after step 7.
        assert state["updates"] == (9 if policy == "skip" else 10)
        assert len(state["guard"]["losses"]) == state["updates"]
        assert state["consumed_samples"] == (40 if policy == "skip" else 52)
    for (entry,) in incidents.values():
        assert (entry["step"], entry["first_sample"], entry["losses"]["diffusion"]) == (
            7,
            24,
            "inf",
        )


@pytest.mark.parametrize("policy", ["skip", pytest.param("rollback", marks=pytest.mark.check)])
def test_a_run_that_gets_no_further_ends(policy: str, dataset: Path, tmp_path: Path) -> None:
    """Its first update spoils the weights, and nothing is finite from then on."""
    config = write_config(tmp_path, dataset, steps=40, save_every=1)
    options = ["parallel.tp=1", "optimizer.lr=1e30", f"train.spike_policy={policy}"]
    process = start("train", str(config), *options, "train.max_refused_steps=5")
    assert "5 steps were refused since step 1," in finish(process, 1)
    incidents = (tmp_path / "run" / "incidents.jsonl").read_text().splitlines()
    assert len(incidents) == 5
    assert not (tmp_path / "run" / "DONE").exists()


def test_an_error_waits_for_the_checkpoint_that_is_being_written(
    dataset: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, dataset)
    (process,) = start_faulty("fails_while_saving", config, "parallel.tp=1", "data.prefetch=1")
    assert "the shard is gone" in finish(process, 1)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert read_manifest(checkpoint).step == 4


@pytest.mark.check
def test_an_error_does_not_wait_for_a_checkpoint_that_is_stuck(
    dataset: Path, tmp_path: Path
) -> None:
    """Half of its timeout would be five minutes."""
    config = write_config(tmp_path, dataset)
    options = ["parallel.tp=1", "data.prefetch=1", "train.timeout_minutes=10"]
    (process,) = start_faulty("fails_while_a_save_is_stuck", config, *options)
    output = finish(process, 1)
    assert "the shard is gone" in output
    assert "a checkpoint made no progress for 2 s" in output


@pytest.mark.check
def test_a_run_whose_every_checkpoint_is_damaged_does_not_start_anew(
    dataset: Path, tmp_path: Path
) -> None:
    """It says so, also the next time, overwrites nothing, and takes the mirror's where it can."""
    config = write_config(tmp_path, dataset, steps=4)
    run, mirror = tmp_path / "run", f"checkpoint.mirror=file://{tmp_path}/mirror"
    options = ["parallel.tp=1", "train.steps=6"]
    finish(start("train", str(config), "parallel.tp=1", mirror), 0)
    before = losses(run)
    (checkpoint,) = committed(run / "checkpoints")
    file = next(checkpoint.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    for _ in range(2):
        output = finish(start("train", str(config), *options), 1)
        assert "step_00000004.damaged. Nothing was overwritten." in output
        assert losses(run) == before
    output = finish(start("train", str(config), *options, mirror), 0)
    assert "step_00000004 of its mirror" in output
    assert [step for step, _ in losses(run)] == list(range(1, 7))


@pytest.mark.parametrize(
    "damage",
    ["bit", *(pytest.param(kind, marks=pytest.mark.check) for kind in ("truncated", "missing"))],
)
def test_a_damaged_checkpoint_is_passed_over(damage: str, dataset: Path, tmp_path: Path) -> None:
    reference = write_config(tmp_path / "reference", dataset, steps=8)
    finish(start("train", str(reference), "parallel.tp=1"), 0)
    config = write_config(tmp_path / "damaged", dataset, steps=8)
    run = tmp_path / "damaged" / "run"
    finish(start("train", str(config), "parallel.tp=1"), 0)
    (run / "DONE").unlink()
    file = next(committed(run / "checkpoints")[-1].glob("*.distcp"))
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:-100])
    else:
        file.unlink()
    output = finish(start("train", str(config), "parallel.tp=1"), 0)
    assert "is passed over" in output
    assert str(file) in output
    assert "at step 4" in output
    assert different(run, tmp_path / "reference" / "run") == []
