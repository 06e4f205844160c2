"""What is stopped, not dead, and what `esolm status` says when something does not answer."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.slurm.chain import cancel_chain
from esolm.pipeline.slurm.status import chain_status
from tests.slurm import victims
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import (
    esolm,
    events,
    explain,
    health,
    job_of,
    newest_step,
    submit_run,
    submit_stub,
    wait_for,
    wait_for_requeues,
    wait_for_step,
    write_profile,
    write_run,
)

pytestmark = [pytest.mark.slurm, pytest.mark.check, pytest.mark.timeout(900)]

# Which nodes each run may not have, and how many it asks for.
STOPPED = {
    "rank": ("node3,node4", "2"),
    "every rank": ("node3,node4", "1"),
    "script": ("node3,node4", "1"),
    "node": ("node1,node2", "1-2"),
}


def test_what_is_stopped_is_noticed(
    cluster: MiniCluster, dataset: Path, tmp_path: Path, figures: dict[str, str]
) -> None:
    """A rank by status and its peer, every rank by the batch script, that by status, a node.

    The run of the node begins on two and goes on with the one that is left.
    """
    runs = {name: tmp_path / name.replace(" ", "_") / "run" for name in STOPPED}
    jobs = {}
    for name, (exclude, nodes) in STOPPED.items():
        config = write_run(runs[name].parent, dataset, steps=100_000, save_every=5)
        profile = write_profile(runs[name].parent, extra=f"exclude: '{exclude}'\n")
        profile.write_text(profile.read_text().replace("exit_seconds: 60", "exit_seconds: 5"))
        settings = (f"slurm.nodes={nodes}", "train.timeout_minutes=1.5")
        jobs[name] = job_of(submit_run(config, profile, *settings))
    for name, run in runs.items():
        wait_for_step(cluster, run, 7)
        if name == "script":
            victims.batch_script(cluster, jobs[name]).suspend()
        elif name == "node":
            assert "on 2 of" in events(run, "training")[0].detail
            cluster.freeze_node("node4")
        else:
            stopped = victims.ranks(cluster, jobs[name])
            victims.suspend([stopped[1]] if name == "rank" else [*stopped.values()])
    reached = {name: newest_step(run) for name, run in runs.items()}
    script = _wait_for_health(cluster, runs["script"], "unattended")
    assert "the batch script of job" in script
    victims.batch_script(cluster, jobs["script"]).resume()
    rank = _wait_for_health(cluster, runs["rank"], "stalled")
    assert re.search(r"no sign of life from rank 1 \(node[12], process \d+\) for", rank)
    _wait_for_health(cluster, runs["script"], "running")
    for name in ("rank", "every rank"):
        wait_for_requeues(cluster, runs[name])
    [peer] = events(runs["rank"], "requeued")
    assert re.search(r"no sign of life from rank 1 \(node[12], process \d+\)", peer.detail)
    figures["a stopped rank, as its peer ends it"] = peer.detail
    [alone] = events(runs["every rank"], "requeued")
    assert alone.detail.startswith("no rank has given a sign of life for"), explain(
        runs["every rank"]
    )
    for name in ("rank", "every rank", "node"):
        wait_for_step(cluster, runs[name], reached[name] + 5)
    assert events(runs["node"], "training")[-1].detail.endswith("on 1 of node3")
    for run in runs.values():
        cancel_chain(run)
    cluster.kill_node("node4")
    cluster.start_node("node4")


def test_nobody_answers(
    cluster: MiniCluster, dataset: Path, tmp_path: Path, figures: dict[str, str]
) -> None:
    """Neither a dead controller nor a dead munge makes a job unknown or its run fail."""
    run = tmp_path / "run"
    submit_stub(tmp_path, dataset, 'until [ -e "{run}/end" ]; do sleep 0.2; done; exit 64')
    wait_for(cluster, run, lambda: events(run, "training"), "a start")
    said = {}
    cluster.kill_munge()
    began = time.monotonic()
    said["munge"] = esolm("status", str(run))
    figures["status with a dead munge"] = f"{time.monotonic() - began:.0f} s"
    cluster.start_munge()
    cluster.stop_controller()
    began = time.monotonic()
    said["controller"] = esolm("status", str(run))
    figures["status with a dead controller"] = f"{time.monotonic() - began:.0f} s"
    (run / "end").touch()
    cluster.start_controller()
    for name, shown in said.items():
        assert shown.returncode == 0, name
        assert re.match(r"\ntrain  \d+  NO ANSWER  training: from step 0", shown.stdout), name
    wait_for(cluster, run, lambda: events(run, "failed"), "the end")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_the_reason(cluster: MiniCluster, dataset: Path, small_disk: Path) -> None:
    """Not even the last words find room on it: Slurm keeps them."""
    # One save, the last: those before it would give room back whenever they fail.
    config = write_run(small_disk.parent, dataset, steps=100_000)
    job = job_of(submit_run(config, write_profile(small_disk.parent)))
    wait_for_step(cluster, small_disk, 7)
    table = small_disk / "slurm" / "events" / "train.tsv"
    with table.open("ab") as file:  # a page that has been begun has room
        file.write(b"\n" * (-table.stat().st_size % 4096))
    full = small_disk / "full"
    with full.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert "no space is left on the disk" in _wait_for_health(cluster, small_disk, "unsaved")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for_state(job, "FAILED")
    assert not events(small_disk, "failed")
    [status] = chain_status(small_disk)
    assert status.detail.startswith("failed: exit code 1"), status.detail
    assert f"no space is left on the disk of {small_disk}" in status.detail
    full.unlink()


def _wait_for_health(cluster: MiniCluster, run: Path, state: str) -> str:
    """The reason, once a run fares so."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found.append(health(run))
        return found[-1]["state"] == state

    wait_for(cluster, run, there, state)
    return json.dumps(found[-1]["reason"])
