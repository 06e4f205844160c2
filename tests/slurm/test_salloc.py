"""The commands that docs/slurm.md shows for an interactive allocation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import logged_steps, write_run

pytestmark = [pytest.mark.slurm, pytest.mark.check, pytest.mark.timeout(1200)]


def test_under_salloc(cluster: MiniCluster, dataset: Path, tmp_path: Path) -> None:
    """As documented, but for what this cluster is like: small, and its nodes' names unknown."""
    config = write_run(tmp_path, dataset, steps=3)
    document = (ROOT / "docs" / "slurm.md").read_text()
    shown = re.search(r"^```bash\nsalloc (.*?)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert shown is not None
    options, commands = shown.groups()
    for of_the_document, here in {
        '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)': "127.0.0.1",
        "--ntasks-per-node=8": "--ntasks-per-node=1",
        "--cpus-per-task=12": "--cpus-per-task=1",
        ".venv/bin/python": sys.executable,
        "configs/run/demo.yaml": str(config),
    }.items():
        assert of_the_document in commands
        commands = commands.replace(of_the_document, here)
    allocate = ["salloc", *options.replace("--gpus-per-node=8", "").split()]
    allocate[allocate.index("--time=2:00:00")] = "--time=10"
    finished = subprocess.run(
        [*allocate, "bash", "-c", commands],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert logged_steps(tmp_path / "run") == [1, 2, 3]
    assert "DP2" in (tmp_path / "run" / "logs" / "rank_0.log").read_text()
