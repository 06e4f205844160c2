"""What the pre-flight finds on a node. That a cluster acts on it is tested in test_policy.py."""

import os
import time
from pathlib import Path

import pytest

from pipeline.slurm.bandwidth import ring
from pipeline.slurm.health import clock_problems, disk_problems, gpu_problems


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


def test_clocks() -> None:
    now = time.time()
    assert clock_problems(now, 30.0) == []
    assert clock_problems(None, 30.0) == []
    assert "off that of the first node" in clock_problems(now + 100.0, 30.0)[0]
    assert "off that of the first node" in clock_problems(now - 100.0, 30.0)[0]


def test_neighbours_are_measured_in_pairs_once_each() -> None:
    assert ring(1) == []
    assert ring(2) == [[0, 1]]
    assert sorted(map(tuple, ring(4))) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert ring(4)[:2] == [[0, 1], [2, 3]], "these two share no node, so they go at once"
