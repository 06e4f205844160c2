"""`esolm prep` where a file or a disk fails it: one line that says what, where and what to do."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.data_prep.corpus import text_of
from tests.processes import run_python


def prep(*arguments: object) -> tuple[int, list[str]]:
    """The exit code of `esolm prep ARGUMENTS...` and what it says on stderr beside progress."""
    finished = run_python("-m", "pipeline", "prep", *map(str, arguments))
    assert "Traceback" not in finished.stderr, finished.stderr
    lines = [line for line in finished.stderr.splitlines() if not line.startswith("INFO")]
    return finished.returncode, lines


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with options on a folder, or mounts it anew."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a small file system")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    texts = (f"{i} {text_of(i % 20, 1000)}" for i in range(60))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_gone_on_with(
    data_path: Path, corpus: Path, mounted: Callable[[str], Path], workers: int
) -> None:
    data = mounted("size=128k") / "data"
    command = ["tokenize", corpus, "--tokenizer", data_path / "tokenizer", "--out", data]
    command += ["--tasks", 2, "--workers", workers]
    code, [line] = prep(*command)
    assert code == 1
    assert line.startswith(f"error: {data}/shards/train-0000")
    assert "No space left on device" in line
    assert "run the same command again" in line
    assert not list(data.glob("*/*.tmp")), "what was begun takes no space"
    mounted("remount,size=50m")
    assert prep(*command) == (0, [])
    assert prep("merge", data)[0] == 0
    assert prep("verify", data)[0] == 0


def test_a_disk_that_is_full_for_the_manifest(
    data_path: Path, mounted: Callable[[str], Path]
) -> None:
    data = mounted("size=4m") / "data"
    shutil.copytree(data_path, data)
    (data / "manifest.json").unlink()
    with pytest.raises(OSError, match="No space left"):
        (data / "filler").write_bytes(bytes(1 << 23))
    code, [line] = prep("merge", data)
    assert (code, line.startswith(f"error: {data}/manifest.json cannot be")) == (1, True), line
    assert not list(data.glob("manifest.json*"))
    (data / "filler").unlink()
    assert prep("merge", data)[0] == 0


@pytest.mark.parametrize("command", ["tokenize", "tokenizer"])
def test_a_folder_that_cannot_be_written(
    data_path: Path, corpus: Path, mounted: Callable[[str], Path], command: str
) -> None:
    closed = mounted("ro,size=1m")
    options = ["--tokenizer", data_path / "tokenizer"] if command == "tokenize" else []
    options += ["--vocab-size", 400] if command == "tokenizer" else []
    for folder, reason in ((closed, "Read-only file system"), (corpus, "Not a directory")):
        code, lines = prep(command, corpus, *options, "--out", folder / "out")
        assert code == 1
        assert len([line for line in lines if not line.startswith("training on")]) == 1
        assert lines[-1].startswith(f"error: {folder}/out")
        assert reason in lines[-1]


@pytest.mark.parametrize("damage", ["flipped", "cut short", "empty", "missing", "unreadable"])
def test_a_damaged_model_is_one_line(
    data_path: Path, corpus: Path, tmp_path: Path, damage: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(data_path, data)
    model = data / "tokenizer" / "tokenizer.model"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    whole = model.read_bytes()
    model.unlink()
    if damage == "unreadable":
        model.mkdir()
    elif damage != "missing":
        size = {"flipped": len(whole), "cut short": len(whole) // 2, "empty": 0}[damage]
        model.write_bytes((content if damage == "flipped" else whole)[:size])
    tokenize = ["tokenize", corpus, "--tokenizer", data / "tokenizer", "--out", tmp_path / "new"]
    for command in (tokenize, ["verify", data], ["merge", data], ["inspect", data]):
        code, lines = prep(*command)
        assert code == 64
        [line] = lines
        assert line.startswith(f"error: {data / 'tokenizer'}")
    assert not (tmp_path / "new").exists()


def test_verify_tells_of_every_file_it_cannot_read(data_path: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(data_path, data)
    tar = data / "shards" / "train-00000-00000.tar"
    tar.unlink()
    tar.mkdir()
    code, lines = prep("verify", data)
    assert code == 64
    assert lines[0] == f"error: {tar}: missing or unreadable (Is a directory)"
