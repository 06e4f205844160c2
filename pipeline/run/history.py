"""What a run writes down about itself: every start, how each ended, and where it went back.

Reading it needs neither torch nor the run to be over.
"""

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from esolm.pipeline.run.directory import RunDirectory


@dataclass(frozen=True)
class Start:
    """One line of starts.jsonl: from which step and sample on, in which layout, as which job."""

    time: str
    step: int
    consumed_samples: int
    global_batch_size: int
    layout: str
    world_size: int
    host: str
    slurm_job_id: str | None


@dataclass(frozen=True)
class End:
    """One line of ends.jsonl. A run that is killed leaves none.

    start: the number of the start that ended, counted from 1.
    """

    time: str
    start: int
    step: int
    exit_code: int
    reason: str


@dataclass(frozen=True)
class Rollback:
    """One line of rollbacks.jsonl: the step the run went back from, and where it went on."""

    time: str
    from_step: int
    step: int
    consumed_samples: int
    global_batch_size: int


Entry = TypeVar("Entry", Start, End, Rollback)


class History:
    """The three files of a run, which rank 0 alone writes."""

    def __init__(self, directory: RunDirectory) -> None:
        self._starts = directory.path / "starts.jsonl"
        self._ends = directory.path / "ends.jsonl"
        self._rollbacks = directory.path / "rollbacks.jsonl"

    def start(
        self, step: int, consumed_samples: int, global_batch_size: int, layout: str, world_size: int
    ) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        host = platform.node()
        entry = Start(
            now(), step, consumed_samples, global_batch_size, layout, world_size, host, job
        )
        append_line(self._starts, asdict(entry))

    def end(self, step: int, exit_code: int, reason: str) -> None:
        append_line(self._ends, asdict(End(now(), len(self.starts()), step, exit_code, reason)))

    def roll_back(
        self, from_step: int, step: int, consumed_samples: int, global_batch_size: int
    ) -> None:
        entry = Rollback(now(), from_step, step, consumed_samples, global_batch_size)
        append_line(self._rollbacks, asdict(entry))

    def starts(self) -> list[Start]:
        return _entries(Start, self._starts)

    def ends(self) -> list[End]:
        return _entries(End, self._ends)

    def rollbacks(self) -> list[Rollback]:
        return _entries(Rollback, self._rollbacks)


def _entries(kind: type[Entry], path: Path) -> list[Entry]:
    """Returns the lines of a file that have the fields of an entry, each of its type."""
    types = get_type_hints(kind)
    return [
        kind(**line)
        for line in read_lines(path)
        if line.keys() == types.keys() and all(isinstance(line[k], types[k]) for k in types)
    ]


def now() -> str:
    """Returns the moment as these files write it; such strings sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a JSONL file; there are none if it does not exist.

    Lines that hold no object are passed over: a process was killed while it wrote one, the disk was
    full, or bytes were damaged since.
    """
    if not path.exists():
        return []
    return [entry for line in path.read_bytes().splitlines(True) if (entry := parse_line(line))]


def parse_line(line: bytes) -> dict[str, Any]:
    """Returns the object that a whole line holds, or else an empty one."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # also if the bytes are no UTF-8
        entry = None
    return entry if isinstance(entry, dict) else {}


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Adds a line, below the rest of a torn one if there is any.

    Raises OSError if the disk is full.
    """
    line = json.dumps(entry) + "\n"
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())
