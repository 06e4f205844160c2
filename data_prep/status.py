"""How far the tasks of a dataset are, from what they leave on disk."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from esolm.data_prep.comparing import PASSES, TOKENIZE
from esolm.data_prep.errors import DataError
from esolm.data_prep.heartbeat import BEAT_SUFFIX, FAILED, RUNNING
from esolm.data_prep.manifest import MANIFEST_NAME, TASKS_DIRECTORY, WORK_DIRECTORY
from esolm.data_prep.processes import start_of

SILENT_SECONDS = 60.0
"""A task whose process is gone, or that is silent for so long on another host, was killed."""
STOPPED = "stopped"
NAME = re.compile(r"(\w+)-(\d{5,})-of-(\d{5,})")


@dataclass
class PassStatus:
    """The tasks of one pass. What is not known is None."""

    name: str
    num_tasks: int
    done: list[int] = field(default_factory=list)
    running: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_waiting(self) -> int:
        """The tasks that nothing has begun."""
        begun = {
            task["task"] for kind in (self.running, self.failed, self.stopped) for task in kind
        }
        return self.num_tasks - len(begun | set(self.done))

    @property
    def share_done(self) -> float:
        """How much of the pass is done, from 0 to 1. Tasks are equal in bytes."""
        return (len(self.done) + sum(map(_share, self.running))) / self.num_tasks

    @property
    def tokens_per_second(self) -> float | None:
        """The tokens that all running tasks make in a second together."""
        speeds = [task["tokens"] / _seconds(task) for task in self.running if _seconds(task) > 0]
        return sum(speeds) if speeds and self.name == TOKENIZE else None

    @property
    def seconds_left(self) -> float | None:
        """The time to the end of the pass, if as many tasks go on as run now."""
        speed = sum(_share(task) / _seconds(task) for task in self.running if _seconds(task) > 0)
        return (1 - self.share_done) * self.num_tasks / speed if speed > 0 else None

    def lines(self) -> Iterator[str]:
        """The status in words: a line, and one for each task that did not end well."""
        speed, left = self.tokens_per_second, self.seconds_left
        words = "n/a" if left is None else str(timedelta(seconds=round(left)))
        yield (
            f"{self.name}: {len(self.done)} of {self.num_tasks} tasks done, {len(self.running)} "
            f"running, {len(self.failed)} failed, {len(self.stopped)} stopped, {self.num_waiting} "
            f"waiting; {100 * self.share_done:.0f} %, "
            f"{'n/a' if speed is None else f'{speed:,.0f}'} tokens/s, {words} left"
        )
        for task in self.failed:
            yield f"  task {task['task']} failed: {task.get('reason', 'n/a')}"
        for task in self.stopped:
            yield f"  task {task['task']} stopped on {task['host']}: run the command again"

    def to_record(self) -> dict[str, Any]:
        """Return the status as a JSON-serialisable record."""
        names = ["name", "num_tasks", "done", "running", "failed", "stopped", "num_waiting"]
        names += ["share_done", "tokens_per_second", "seconds_left"]
        return {name: getattr(self, name) for name in names}


def status_of(data: Path) -> list[PassStatus]:
    """Return the status of every pass that has begun, in order.

    Raises DataError if nothing was begun in the directory.
    """
    passes: dict[str, PassStatus] = {}
    for name, task, num_tasks, path in _of_the_job(data):
        status = passes.setdefault(name, PassStatus(name, num_tasks))
        if path.suffix == ".json":
            status.done.append(task)
        elif task not in status.done:
            _sort_in(path, status)
    if not passes:
        raise DataError(
            f"{data}: no task of `esolm prep tokenize` has begun there. Name its --out."
            if not (data / MANIFEST_NAME).exists()
            else f"{data} is merged, and what its tasks left is gone: nothing is to be done."
        )
    return [passes[name] for name in PASSES if name in passes]


def _of_the_job(data: Path) -> list[tuple[str, int, int, Path]]:
    """Return pass, task, number of tasks and path of what tasks left, markers first.

    What is left of an earlier job of another number of tasks is passed over.
    """
    found = []
    for folder in (WORK_DIRECTORY, TASKS_DIRECTORY):
        for path in sorted((data / folder).glob("*")):
            named = NAME.match(path.name)
            if named and path.suffix in (".json", BEAT_SUFFIX):
                name = TOKENIZE if named[1] == "task" else named[1]
                found.append((name, int(named[2]), int(named[3]), path))
    if not found:
        return []
    found.sort(key=lambda each: each[3].suffix == BEAT_SUFFIX)
    # A job of another number is refused where a task has its tokens; else the last one counts.
    finished = [each for each in found if each[0] == TOKENIZE and each[3].suffix == ".json"]
    num_tasks = max(finished or found, key=lambda each: _modified(each[3]))[2]
    return [each for each in found if each[2] == num_tasks]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # its task ended just now
        return 0.0


def _sort_in(path: Path, status: PassStatus) -> None:
    try:
        beat = json.loads(path.read_text())
    except (OSError, ValueError):  # it ended, or is being replaced, just now
        return
    if beat["state"] == FAILED:
        status.failed.append(beat)
    elif beat["state"] == RUNNING:
        (status.running if _is_alive(beat) else status.stopped).append(beat)


def _is_alive(beat: dict[str, Any]) -> bool:
    if beat["host"] != socket.gethostname():
        return bool(time.time() - beat["updated"] <= SILENT_SECONDS)
    try:
        os.kill(beat["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and somebody else's
    # Another process may have its id by now.
    return bool(beat.get("process_started", "") in ("", start_of(beat["process"])))


def _seconds(beat: dict[str, Any]) -> float:
    return float(beat["updated"] - beat["started"])


def _share(beat: dict[str, Any]) -> float:
    # What is read of a compressed file is more than what lies on disk.
    return min(1.0, int(beat["bytes"]) / max(1, int(beat["bytes_total"])))
