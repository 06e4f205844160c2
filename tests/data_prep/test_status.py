"""What `prep status` says of tasks that live, of what is left of others, and what tasks tell."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esolm.data_prep import comparing, heartbeat
from esolm.data_prep.cleaning.runs import later_documents
from esolm.data_prep.comparing import choose_task, compare_task
from esolm.data_prep.heartbeat import Heartbeat, beats_path
from esolm.data_prep.jobs import marker_path, prepare_output
from esolm.data_prep.status import SILENT_SECONDS, status_of
from esolm.data_prep.tokenizing import run_task
from tests.data_prep.corpus import make_job, text_of, write_jsonl


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every beat, as none is held back."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", -1.0)
    records: list[dict[str, Any]] = []
    write = Heartbeat._write

    def listen(self: Heartbeat) -> None:
        records.append(dict(self._record))
        write(self)

    monkeypatch.setattr(Heartbeat, "_write", listen)
    return records


def test_what_is_left_out_is_told_as_well(
    tokenizer_directory: Path, tmp_path: Path, told: list[dict[str, Any]]
) -> None:
    source = tmp_path / "same.jsonl"
    source.write_text((json.dumps({"text": text_of(1)}) + "\n") * 20)
    job = make_job(source, tokenizer_directory, tmp_path / "data")
    prepare_output(job, tokenizer_directory, overwrite=False)
    run_task(job, 0, lambda num_bytes: None)
    assert len({record["bytes"] for record in told}) == 21
    assert told[-1]["bytes"] == source.stat().st_size


def test_the_choice_tells_how_far_it_is(
    tokenizer_directory: Path,
    tmp_path: Path,
    told: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", 30)
    job = make_job(source, tokenizer_directory, tmp_path / "data", dedup="near")
    prepare_output(job, tokenizer_directory, overwrite=False)
    compare_task(job, 0, lambda num_bytes: None)
    monkeypatch.setattr(comparing, "later_documents", lambda *a: later_documents(*a, window=10))
    seen: list[int] = []
    told.clear()
    choose_task(job, 0, seen.append)
    assert sum(seen) == source.stat().st_size
    assert len(seen) > 10
    assert [record["bytes"] for record in told] == [sum(seen[:n]) for n in range(len(seen) + 1)]


@pytest.fixture
def leave(tokenizer_directory: Path, tmp_path: Path) -> Callable[..., Path]:
    """Leaves the beat of a task and returns the dataset."""
    job = make_job(write_jsonl(tmp_path / "a.jsonl", 3), tokenizer_directory, tmp_path / "data")
    prepare_output(job, tokenizer_directory, overwrite=False)

    def beat(task: int = 0, num_tasks: int = 2, **fields: object) -> Path:
        path = beats_path(job.out, "tokenize", task, num_tasks)
        with Heartbeat(job, 0, "tokenize") as own:
            record = {**own._record, "updated": time.time(), "task": task, **fields}
        path.write_text(json.dumps(record))
        return job.out

    return beat


def test_a_living_process_is_believed_on_its_own_host(leave: Callable[..., Path]) -> None:
    silent = time.time() - 2 * SILENT_SECONDS
    (status,) = status_of(leave(updated=silent))
    assert (len(status.running), len(status.stopped)) == (1, 0)
    (status,) = status_of(leave(updated=silent, host=f"not-{socket.gethostname()}"))
    assert (len(status.running), len(status.stopped)) == (0, 1)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (status,) = status_of(leave(process=gone.pid))
    assert (len(status.running), len(status.stopped)) == (0, 1)
    # Another process has got the id of one that was killed.
    (status,) = status_of(leave(process_started="0"))
    assert (len(status.running), len(status.stopped)) == (0, 1)


def test_what_is_left_of_other_jobs_and_done_tasks_is_not_shown(
    leave: Callable[..., Path],
) -> None:
    leave(task=6, num_tasks=7, state="failed", reason="before")
    data = leave(task=1)
    (status,) = status_of(data)
    assert (status.num_tasks, len(status.running), len(status.failed)) == (2, 1, 0)
    marker_path(data, 1, 2).write_text("{}")
    leave(task=6, num_tasks=7, state="failed", reason="before")
    (status,) = status_of(data)
    assert (status.num_tasks, status.done, status.num_waiting) == (2, [1], 1)
    assert [status.running, status.failed, status.stopped] == [[], [], []]
