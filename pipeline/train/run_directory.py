"""The run directory: an interface that scripts and other commands rely on (see docs/training.md)."""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig, to_yaml

PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "sentencepiece", "transformers")


class RunDirectory:
    """Paths of a run, and the small files in it. Files are written by rank 0, logs by every rank."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.tokenizer = self.path / "tokenizer"
        self.done = self.path / "DONE"

    def log_to_files(self, rank: int) -> None:
        """Sends this rank's log to logs/rank_N.log, appended over restarts; rank 0 also to stderr."""
        logs = self.path / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [logging.FileHandler(logs / f"rank_{rank}.log")]
        if rank == 0:
            handlers.append(logging.StreamHandler(sys.stderr))
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(message)s",
            handlers=handlers,
            force=True,
        )
        logging.captureWarnings(True)

    def describe(self, config: RunConfig, tokenizer: Path, kernels: dict[str, str]) -> None:
        """Writes config.yaml, env.json and the run's own copy of the tokenizer."""
        (self.path / "config.yaml").write_text(to_yaml(config))
        (self.path / "env.json").write_text(json.dumps(environment(kernels), indent=1) + "\n")
        if not self.tokenizer.exists():
            shutil.copytree(tokenizer, self.tokenizer)

    def finish(self, step: int) -> None:
        """Marks the training as complete."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        self.done.write_text(json.dumps({"step": step, "time": moment}) + "\n")


def environment(kernels: dict[str, str]) -> dict[str, Any]:
    """What the run depends on outside its configuration; never the whole environment."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git_revision": _git_revision(),
        "kernels": kernels,
        "slurm": {key: value for key, value in os.environ.items() if key in SLURM_KEYS},
    }


SLURM_KEYS = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "SLURM_RESTART_COUNT",
)


def _git_revision() -> str:
    """The revision of this code, or "n/a" outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "n/a"
