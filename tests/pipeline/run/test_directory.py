"""What a start leaves behind when it is killed in the middle of a write."""

from pathlib import Path

import pytest

from pipeline.run.config import load_config
from pipeline.run.directory import RunDirectory
from pipeline.run.history import History, read_lines
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
    directory.tokenizer.joinpath("vocab.txt").write_text("of an imported run")
    directory.tokenizer.joinpath("tokenizer.json").write_text("another's")
    directory.describe(config, original, {})
    assert contents() != whole, "another tokenizer is left alone"
    assert sorted(p.name for p in directory.path.iterdir()) == [
        "config.yaml",
        "env.json",
        "tokenizer",
    ]
