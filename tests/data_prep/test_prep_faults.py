"""A damaged tokenizer, a full or unwritable disk: one line that says what, where and what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.tokenizers import load_tokenizer
from tests.data_prep.corpus import make_tokenizer, write_jsonl
from tests.processes import run_python


def refused(*arguments: str | Path, code: int) -> str:
    """The one line that a command ends with."""
    finished = run_python("-m", "esolm", *map(str, arguments))
    assert finished.returncode == code, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", 30)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(
    workers: int, corpus: Path, tokenizer_directory: Path, mounted: Callable[[str], Path]
) -> None:
    out = mounted("size=48k") / "data"
    command = ["prep", "tokenize", corpus, "--tokenizer", tokenizer_directory, "--out", out]
    line = refused(*command, "--tasks", "2", "--workers", str(workers), code=1)
    assert str(out) in line
    assert "No space left on device. Free some space" in line


def test_a_folder_that_cannot_be_written(
    corpus: Path, tokenizer_directory: Path, mounted: Callable[[str], Path]
) -> None:
    out = mounted("ro") / "data"
    command = ["prep", "tokenize", corpus, "--tokenizer", tokenizer_directory, "--out", out]
    line = refused(*command, code=1)
    assert f"{out.parent}" in line
    assert "Read-only file system. Mend the rights" in line


def test_no_changed_byte_of_a_tokenizer_is_taken(tmp_path: Path) -> None:
    directory = make_tokenizer(tmp_path / "tokenizer")
    path = directory / "tokenizer.model"
    content = path.read_bytes()
    size = len(content)
    # At the end are settings of its training, which change no token and so no fingerprint.
    for place in [*range(0, size, size // 40), *range(size - 80, size)]:
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"tokenizer\.model"):
            load_tokenizer(directory)
    path.write_bytes(content)
    load_tokenizer(directory)


def test_a_damaged_tokenizer_in_every_command(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    tokenize = ["prep", "tokenize", corpus, "--tokenizer", tokenizer_directory, "--out", out]
    for command in (tokenize, ["prep", "merge", out]):
        done = run_python("-m", "esolm", *map(str, command))
        assert done.returncode == 0, done.stderr
    model = out / "tokenizer" / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:-100])
    assert str(model) in refused("prep", "verify", out, code=64)
    tokenize = ["prep", "tokenize", corpus, "--tokenizer", model.parent, "--out", tmp_path / "o"]
    assert str(model) in refused(*tokenize, code=64)
