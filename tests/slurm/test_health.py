"""What the pre-flight finds on a node. That a cluster acts on it is tested in test_policy.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esolm.pipeline.slurm.bandwidth import ring
from esolm.pipeline.slurm.health import disk_problems, gpu_problems
from tests.dist.ranks import rank_environment
from tests.processes import ROOT


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program that answers like nvidia-smi before all others."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("printf '0, 0\\n1, [N/A]\\n'", None),
        ("printf '0, 0\\n'", "1 of 2 GPUs are visible"),
        ("printf '0, 0\\n1, 3\\n'", "GPU 1 had 3 uncorrected memory errors"),
        ("echo 'driver not loaded' >&2; exit 9", "driver not loaded"),
    ],
)
def test_gpus(
    script: str, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, monkeypatch, script)
    found = gpu_problems(2)
    assert (problem is None and found == []) or (problem is not None and problem in found[0])


def test_a_node_without_gpus_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_problems(0) == []
    assert "does not answer" in gpu_problems(1)[0]


def test_disks(tmp_path: Path) -> None:
    assert disk_problems(tmp_path, 0.0) == []
    assert "GB free; 1e+06 are wanted" in disk_problems(tmp_path, 1e6)[0]
    assert "cannot be written to" in disk_problems(tmp_path / "missing", 0.0)[0]


def preflight(folder: Path, faults: list[str], ranks_per_node: int, *options: str) -> set[str]:
    """The verdicts of nodes a, b and so on. One process for each rank but those `absent`."""
    processes = []
    for rank, variables in enumerate(rank_environment(len(faults))):
        node, local = divmod(rank, ranks_per_node)
        variables |= {"SLURMD_NODENAME": "abc"[node], "SLURM_LOCALID": str(local)}
        variables["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-W", "ignore", "-m", "tests.slurm.faulty_health", faults[rank]]
        command += ["--reports", str(folder), "--run-dir", str(folder), *options]
        command += ["--min-allreduce-gb-per-second", "1e-9", "--timeout-seconds", "50"]
        command += ["--ranks-per-node", str(ranks_per_node)]
        if faults[rank] != "absent":
            processes.append(subprocess.Popen(command, env=variables, cwd=ROOT))
    try:
        for process in processes:
            process.wait(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {path.name for path in folder.iterdir()}


@pytest.mark.dist
@pytest.mark.check
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("device", "rank 3 cannot compute: CUDA error: uncorrectable ECC"),
        ("dies", "all-reduce within the node fails"),
    ],
)
def test_only_the_node_at_fault_is_named(fault: str, reason: str, tmp_path: Path) -> None:
    """A rank that spoils the collectives of all; its node's other rank tells."""
    assert preflight(tmp_path, ["fit", "fit", "fit", fault], 2) == {"a.unmeasured", "b.failed"}
    assert reason in (tmp_path / "b.failed").read_text()


@pytest.mark.dist
@pytest.mark.check
def test_of_three_nodes_one_dies_in_the_measurement(tmp_path: Path) -> None:
    """It leaves that it did not come to an end; the others still have each other."""
    assert preflight(tmp_path, ["fit", "fit", "dies"], 1) == {"a.ok", "b.ok", "c.began"}


@pytest.mark.dist
@pytest.mark.check
def test_nodes_that_cannot_meet_blame_nobody(tmp_path: Path) -> None:
    """Nor each other: the first one has left nothing, which tells enough."""
    assert preflight(tmp_path, ["absent", "fit", "fit"], 1) == {"b.unmet", "c.unmet"}


@pytest.mark.dist
@pytest.mark.check
def test_a_gpu_that_only_the_driver_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "printf '0, 0\\n'")
    reports = tmp_path / "reports"
    reports.mkdir()
    assert preflight(reports, ["fit"], 1, "--gpus", "1") == {"a.failed"}
    assert "rank 0 finds no GPU" in (reports / "a.failed").read_text()


@pytest.mark.dist
def test_sound_nodes_are_measured(tmp_path: Path) -> None:
    assert preflight(tmp_path, ["fit"] * 4, 2) == {"a.ok", "b.ok"}


def test_neighbours_are_measured_in_pairs_once_each() -> None:
    assert ring(1) == []
    assert ring(2) == [[0, 1]]
    assert sorted(map(tuple, ring(4))) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert ring(4)[:2] == [[0, 1], [2, 3]], "these two share no node, so they go at once"
