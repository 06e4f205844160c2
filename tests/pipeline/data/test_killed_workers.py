"""Killed processes of `esolm prep tokenize --workers`."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.data_prep.corpus import text_of
from tests.processes import environment


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents enough to keep two workers busy on a slow machine, too, 160 MB."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    texts = [text_of(i, 2000) for i in range(20)]
    path.write_text(
        "".join(json.dumps({"text": f"{i} {texts[i % 20]}"}) + "\n" for i in range(16000))
    )
    return path


@pytest.fixture
def tokenizer(data_path: Path) -> Path:
    return data_path / "tokenizer"


def start_tokenizing(corpus: Path, tokenizer: Path, data: Path) -> subprocess.Popen[str]:
    """The command with two workers, both of which have begun their tasks."""
    command = f"-W ignore -m esolm prep tokenize {corpus} --tokenizer {tokenizer} --out {data}"
    process = subprocess.Popen(
        [sys.executable, *command.split(), "--tasks", "2", "--workers", "2"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: len(list((data / "shards").glob("train-*.tmp"))) == 2)
    return process


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Its workers in the order in which they started; ids of processes wrap around."""
    children = sorted(psutil.Process(process.pid).children(), key=lambda child: child.create_time())
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(
    number: int, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    process = start_tokenizing(corpus, tokenizer, tmp_path / "data")
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:
        worker.kill()
    assert not alive
    assert not list((tmp_path / "data" / "tasks").glob("*.json")), "they were at work"


@pytest.mark.parametrize("place", [0, 1])
def test_a_killed_worker_is_one_line(
    place: int, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    process = start_tokenizing(corpus, tokenizer, tmp_path / "data")
    workers = workers_of(process)
    workers.pop(place).kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    # Beside it there may be lines of progress, which come after some seconds.
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: A worker process was killed")
    assert "Traceback" not in output
    assert "fewer than 2 --workers" in line
    assert not any(worker.is_running() for worker in workers)
