"""A small finished run that several tests look at; none may change it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RecordedRun:
    """fed: per step that was computed, in that order, the tensors of its micro-batches."""

    path: Path
    config: Path
    fed: list[list[tuple[torch.Tensor, ...]]]


@pytest.fixture(scope="session")
def recorded_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    """12 steps with checkpoints at 4, 8 and 12; step 7 is refused and rolls back to 4."""
    # Here, for most tests of this folder ask for no run and need not wait for torch.
    import torch

    from tests.dist.ranks import rank_environment
    from tests.e2e.runs import write_config

    folder = tmp_path_factory.mktemp("recorded")
    config = write_config(folder, dataset)
    settings = config.read_text().replace("parallel: {tp: 2}", "parallel: {tp: 1}")
    settings = settings.replace("keep: 2", "keep: 3")
    settings = settings.replace("seq_len: 32", "seq_len: 32, spike_policy: rollback")
    settings = settings.replace("steps: 12", "steps: 12, profile_steps: 2-3")
    settings = settings.replace("global_batch_size: 4", "global_batch_size: 8")
    config.write_text(settings)
    script = ["-m", "tests.pipeline.watch.recorded_run", str(config), str(folder / "fed.pt")]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", *script],
        env=rank_environment(1)[0],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return RecordedRun(folder / "run", config, torch.load(folder / "fed.pt"))
