"""The run directory: an interface that scripts and other commands rely on."""

import errno
import fcntl
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import probe_writing, write_atomic
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.errors import ConfigError, EsolmError
from esolm.pipeline.run.config import load_recorded, to_yaml
from esolm.pipeline.run.sections import RunConfig

# `esolm status` holds the lock for an instant while it checks whether a run is alive.
LOCK_ATTEMPTS, LOCK_PAUSE_SECONDS = 5, 0.1
PROBE_BYTES = 1 << 16
REVISION = "REVISION"
PACKAGES = ("torch", "deepspeed", "megatron-core", "numpy", "sentencepiece", "transformers")


class RunDirectory:
    """The paths of a run and the small files in it: rank 0 writes them, every rank its own logs."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.tokenizer = self.path / "tokenizer"
        self.incidents = self.path / "incidents.jsonl"
        self.logs = self.path / "logs"
        self.compiled = self.path / "compiled"
        self.done = self.path / "DONE"

    def stacks(self, rank: int) -> Path:
        """Where a rank that hangs leaves its stack traces."""
        return self.logs / f"stacks_{rank}.txt"

    def beat(self, rank: int) -> Path:
        """What a rank touches for as long as it lives; see `esolm.pipeline.run.beats`."""
        return self.logs / f"beat_{rank}"

    def profile(self, rank: int) -> Path:
        """The trace of the steps that a rank was asked to profile."""
        return self.path / "profile" / f"rank_{rank}.json"

    def config(self) -> RunConfig:
        """Returns the configuration of the last start. Raises ConfigError if this is no run."""
        path = self.path / "config.yaml"
        if not path.is_file():
            raise ConfigError(
                f"{self.path} is no run directory: it has no config.yaml. "
                "Name the run.dir of a training that was started"
            )
        return load_recorded(path)

    def lock(self) -> None:
        """Takes the run for this job until the process ends, however it ends; rank 0 only.

        Raises ConfigError if another job holds it, or if nothing can be written into it.
        """
        try:
            for folder in (self.path, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            probe_writing(self.checkpoints, PROBE_BYTES)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            # What may pass by itself is worth another try, so it is no error of the configuration.
            passing = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
            kind = EsolmError if passing else ConfigError
            raise kind(
                f"run.dir {self.path} cannot be written ({error.strerror}: {error.filename}): mend "
                "its rights, free space on its disk, or use another directory"
            ) from error
        try:
            _take(self._lock)
        except BlockingIOError:
            self._lock.seek(0)
            raise ConfigError(
                f"run.dir {self.path} is in use by another job ({self._lock.read().strip()}); "
                "stop that one or use another directory"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"host {platform.node()}, process {os.getpid()}")
        self._lock.flush()

    def is_locked(self) -> bool:
        """Whether a process holds the run, on this node or another that shares these locks."""
        try:
            with (self.path / ".lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def unlock(self) -> None:
        """Gives the run back before the process ends."""
        self._lock.close()

    def finished_step(self) -> int | None:
        """Returns the step at which DONE says that the run was complete.

        Returns None if there is no DONE or it was cut short: the run then goes on to its end and
        writes it anew.
        """
        try:
            step = json.loads(self.done.read_bytes())["step"]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None
        return step if isinstance(step, int) else None

    def is_finished(self, steps: int) -> bool:
        """Whether DONE says that the run has done at least so many steps."""
        done = self.finished_step()
        return done is not None and done >= steps

    def log_to_files(self, rank: int) -> None:
        """Sends this rank's log to logs/rank_N.log, appended over restarts.

        Rank 0 shows its own messages on stderr as well; what libraries say stays in the file.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [logging.FileHandler(self.logs / f"rank_{rank}.log")]
        if rank == 0:
            console = logging.StreamHandler(sys.stderr)
            console.addFilter(_is_for_people)
            handlers.append(console)
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(message)s",
            handlers=handlers,
            force=True,
        )
        logging.captureWarnings(True)

    def describe(self, config: RunConfig, tokenizer: Path, kernels: dict[str, str]) -> None:
        """Writes config.yaml, env.json and the run's own copy of the tokenizer.

        Raises ConfigError, before anything is written, if that copy is there and of another one.
        """
        if _is_cut_short(self.tokenizer, tokenizer):
            _copy_whole(tokenizer, self.tokenizer)
        else:
            _check_copy(self.tokenizer, tokenizer)
        write_atomic(self.path / "config.yaml", to_yaml(config).encode())
        described = json.dumps(environment(kernels), indent=1) + "\n"
        write_atomic(self.path / "env.json", described.encode())

    def finish(self, step: int) -> None:
        """Marks the training as complete."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomic(self.done, (json.dumps({"step": step, "time": moment}) + "\n").encode())


def _is_cut_short(copy: Path, original: Path) -> bool:
    """Whether a copy holds only files of the original, or none, and lacks some or parts of some."""
    there = {path.name: path.stat().st_size for path in copy.glob("*")}
    whole = {path.name: path.stat().st_size for path in original.glob("*")}
    return there != whole and all(size <= whole.get(name, -1) for name, size in there.items())


def _check_copy(copy: Path, original: Path) -> None:
    """Compares the run's copy with the dataset's tokenizer; a damaged copy is made anew."""
    whole = load_tokenizer(original).vocabulary
    try:
        found = load_tokenizer(copy).vocabulary
    except DataError:
        if not {path.name for path in copy.iterdir()} <= {path.name for path in original.iterdir()}:
            raise
        _copy_whole(original, copy)
        return
    same = found.identity == whole.identity or None in (found.identity, whole.identity)
    if not same or found.num_rows != whole.num_rows:
        raise ConfigError(
            f"{copy}, the run's tokenizer, is not the one of the dataset ({original}), so that its "
            "tokens have other meanings. Give the dataset of the run, or another run.dir."
        )


def _copy_whole(original: Path, copy: Path) -> None:
    """Copies a directory, in place of whatever a start that was killed has left there."""
    staging = copy.with_name(f"{copy.name}.tmp")
    for left in (staging, copy):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(original, staging)
    staging.rename(copy)


def _take(lock: IO[str]) -> None:
    for _ in range(LOCK_ATTEMPTS - 1):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            return
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_for_people(record: logging.LogRecord) -> bool:
    ours = record.name.startswith("esolm.")
    return ours or record.levelno >= logging.ERROR


def environment(kernels: dict[str, str]) -> dict[str, Any]:
    """Returns what the run depends on outside its configuration; never the whole environment."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git_revision": git_revision(),
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


def git_revision() -> str:
    """Returns the revision of this code, of an installed package its version, else "n/a".

    A copy that `esolm submit` made carries its revision in a file.
    """
    package = Path(__file__).parents[2]
    if (package / REVISION).exists():
        return (package / REVISION).read_text().strip()
    if not (package / "pipeline").is_symlink():  # not a checkout; another project's may surround it
        return f"v{metadata.version('esolm')}"
    command = ["git", "-C", str(package), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "n/a"
