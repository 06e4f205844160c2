"""What a start leaves behind when it is killed in the middle of a write."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esolm.pipeline.errors import EXIT_FAILED, ConfigError, EsolmError
from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History, read_lines
from tests.data_prep.corpus import make_tokenizer
from tests.processes import ROOT

CONFIG = ROOT / "configs" / "run" / "demo.yaml"


@pytest.mark.parametrize("content", ["", '{"ste', "{}", "7"])
def test_a_done_that_was_cut_short_is_written_anew(content: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.done.write_text(content)
    assert not directory.is_finished(10)
    directory.finish(10)
    assert directory.is_finished(10)
    assert not directory.is_finished(11)
    assert [path.name for path in tmp_path.iterdir()] == ["DONE"]


def test_a_torn_line_spoils_neither_those_before_nor_those_after(tmp_path: Path) -> None:
    history, ends = History(RunDirectory(tmp_path)), tmp_path / "ends.jsonl"
    for step in (4, 8, 12):
        history.end(step, 85, "")
        with ends.open("a") as file:
            file.write('{"time": "2026-')
    assert [end.step for end in history.ends()] == [4, 8, 12]
    with ends.open("a") as file:
        file.write("7\n\n")
    assert len(read_lines(ends)) == 3, "what is no object is no line"


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00\n", b'{"step": "x"}\n', b"[1]\n", b"{}\n"])
def test_damaged_lines_of_the_history_are_passed_over(damage: bytes, tmp_path: Path) -> None:
    history = History(RunDirectory(tmp_path))
    for number in (1, 2):
        history.start(number, 8 * number, 8, "one rank", 1)
        history.end(number, 85, "asked")
        history.roll_back(number + 1, number, 8, 8)
        for name in ("starts", "ends", "rollbacks"):
            with (tmp_path / f"{name}.jsonl").open("ab") as file:
                file.write(damage)
    assert [start.step for start in history.starts()] == [1, 2]
    assert [end.start for end in history.ends()] == [1, 2]
    assert [rollback.step for rollback in history.rollbacks()] == [1, 2]


def test_a_run_that_cannot_be_written_is_refused_at_its_start(
    mounted: Callable[[str], Path],
) -> None:
    directory = RunDirectory(mounted("ro,size=1m") / "run")
    with pytest.raises(ConfigError, match=r"/run cannot be written \(Read-only file system"):
        directory.lock()


def test_a_disk_that_is_full_at_the_start_is_named_and_worth_another_try(
    mounted: Callable[[str], Path],
) -> None:
    disk = mounted("size=64k")
    directory = RunDirectory(disk / "run")
    directory.lock()
    directory.unlock()
    with contextlib.suppress(OSError):
        (disk / "filler").write_bytes(bytes(1 << 17))
    with pytest.raises(EsolmError, match="No space left on device") as refused:
        directory.lock()
    assert refused.value.exit_code == EXIT_FAILED


def test_the_copy_of_the_tokenizer_is_whole_or_made_again(dataset: Path, tmp_path: Path) -> None:
    directory, original = RunDirectory(tmp_path / "run"), dataset / "tokenizer"
    directory.path.mkdir()
    config = load_config(CONFIG, ["run.dir=unused", "data.path=unused"])

    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.tokenizer.iterdir()}

    directory.describe(config, original, {})
    whole = contents()
    assert whole == {path.name: path.read_bytes() for path in original.iterdir()}
    directory.tokenizer.joinpath("tokenizer.json").unlink()
    directory.tokenizer.joinpath("tokenizer.model").write_bytes(whole["tokenizer.model"][:100])
    directory.describe(config, original, {})
    assert contents() == whole
    flipped = bytearray(whole["tokenizer.model"])
    flipped[1000] ^= 1
    directory.tokenizer.joinpath("tokenizer.model").write_bytes(flipped)
    directory.describe(config, original, {})
    assert contents() == whole, "a damaged copy is made anew"
    shutil.rmtree(directory.tokenizer)
    make_tokenizer(directory.tokenizer, vocab_size=450)
    other = contents()
    (directory.path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="is not the one of the dataset"):
        directory.describe(config, original, {})
    assert contents() == other, "another tokenizer is left alone"
    assert not (directory.path / "config.yaml").exists()
    shutil.rmtree(directory.tokenizer)
    directory.describe(config, original, {})
    assert sorted(p.name for p in directory.path.iterdir()) == [
        "config.yaml",
        "env.json",
        "tokenizer",
    ]
