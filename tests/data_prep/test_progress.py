"""Progress: bars and phases, as lines where there is no terminal, and what they say of the time."""

import gzip
import inspect
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from esolm.data_prep import progress
from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.progress import ProgressBar, phase
from esolm.data_prep.sampling import sample_chunks, sample_files
from esolm.data_prep.sources import find_files
from tests.processes import run_python
from tests.terminal import run_at_terminal

Errors = pytest.CaptureFixture[str]


@pytest.fixture
def every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line whenever something is done."""
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)


def wait_for(text: str, capsys: Errors) -> str:
    """What was written to stderr until it had the text; the test's own timeout ends a wait."""
    seen, pause = "", threading.Event()
    while text not in seen:
        seen += capsys.readouterr().err
        pause.wait(0.01)
    return seen


def test_a_phase_tells_from_time_to_time_that_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: Errors
) -> None:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.05)
    with phase("train 400 pieces"):
        seen = wait_for("so far", capsys)
    assert seen.startswith("train 400 pieces: 0:00:0")
    threads = [thread for thread in threading.enumerate() if thread.name.endswith("(_tell)")]
    assert threads == []
    with pytest.raises(KeyError), phase("fails"):
        raise KeyError
    with phase("hidden", shown=False):
        assert not any(thread.name.endswith("(_tell)") for thread in threading.enumerate())


def test_the_time_left_is_unknown_where_the_total_was_too_small(
    every_time: None, capsys: Errors
) -> None:
    with ProgressBar("read", 4) as bar:
        bar.advance(2)
        bar.update(9)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "read: 2/4, 0:00:00 left"
    assert second == "read: 9/4, n/a left"


def test_sampling_shows_how_much_of_the_files_is_read(
    every_time: None, tmp_path: Path, capsys: Errors
) -> None:
    """Of a compressed file no more than lies on disk, so that it never passes the end."""
    (tmp_path / "a.txt").write_text("one line\n" * 400)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"another line\n" * 4000))
    (tmp_path / "c.txt").write_text("a third line\n" * 400)
    files = find_files([tmp_path])
    chunks = sample_files(files, BadDocuments(), ReadOptions(), 50)
    assert chunks == sample_chunks(iterate_documents(files, BadDocuments()), 50)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("sample text: ") for line in lines)
    shares = [int(line.split("(")[1].split(" %")[0]) for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert len(set(shares)) >= 3


@pytest.mark.parametrize("at", [run_at_terminal, None])
def test_prep_tokenizer_says_which_phase_runs(
    at: Callable[..., tuple[int, str, str]] | None, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(inspect.getsource(inspect))
    arguments = ["-m", "esolm", "prep", "tokenizer", str(text), "--vocab-size", "500"]
    arguments += ["--out", str(tmp_path / "tokenizer")]
    if at is not None:
        code, output, errors = at(*arguments)
        assert "sample text" in errors
        assert "train 500 pieces" in errors
    else:
        done = run_python(*arguments)
        code, output, errors = done.returncode, done.stdout, done.stderr
        assert "\x1b" not in errors
    assert code == 0, errors
    assert output.startswith(f"{tmp_path / 'tokenizer'}: 500 pieces, fingerprint ")
    assert len(output.splitlines()) == 1
