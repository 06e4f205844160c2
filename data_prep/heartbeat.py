"""What a task that runs tells of itself, for `esolm prep status`."""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from esolm.data_prep.files import json_bytes, remove_leftovers, temporary_path
from esolm.data_prep.jobs import TokenizeJob, task_name
from esolm.data_prep.manifest import TASKS_DIRECTORY
from esolm.data_prep.processes import start_of

BEAT_SECONDS = 2.0
BEAT_SUFFIX = ".beat"
RUNNING, FAILED = "running", "failed"
MOST_REASON = 2000


def beats_path(data: Path, name: str, task: int, num_tasks: int) -> Path:
    """Return the path of what a pass of a task tells of itself."""
    return data / TASKS_DIRECTORY / f"{task_name(name, task, num_tasks)}{BEAT_SUFFIX}"


class Heartbeat:
    """Writes every two seconds how far a pass of a task is, and why it failed, if it did.

    What it writes is for people alone: nothing depends on it, and a full disk does not end a task
    because of it.
    """

    def __init__(self, job: TokenizeJob, task: int, name: str) -> None:
        self._path = beats_path(job.out, name, task, job.num_tasks)
        self._record: dict[str, Any] = {
            "pass": name,
            "task": task,
            "num_tasks": job.num_tasks,
            "state": RUNNING,
            "bytes": 0,
            "bytes_total": job.num_bytes_of(task),
            "tokens": 0,
            "started": time.time(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "process_started": start_of(os.getpid()),
        }
        self._written = 0.0

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            remove_leftovers(self._path)
        self._write()
        return self

    def beat(self, num_bytes: int, num_tokens: int = 0) -> None:
        """Count what was done since the last call."""
        self._record["bytes"] += num_bytes
        self._record["tokens"] += num_tokens
        if time.monotonic() - self._written > BEAT_SECONDS:
            self._write()

    def counting(self, on_bytes: Callable[[int], None]) -> Callable[[int], None]:
        """Return `on_bytes` that counts here as well."""

        def count(num_bytes: int) -> None:
            on_bytes(num_bytes)
            self.beat(num_bytes)

        return count

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            return
        self._record["state"] = FAILED
        self._record["reason"] = (str(error) or type(error).__name__)[:MOST_REASON]
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        temporary = temporary_path(self._path)
        try:
            temporary.write_bytes(json_bytes({**self._record, "updated": time.time()}))
            os.replace(temporary, self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
