"""What the start of a training says of a damaged dataset: one message, exit code 64, no run."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.manifest import read_manifest
from tests.data_prep.corpus import make_tokenizer
from tests.e2e.runs import write_config

Start = Callable[..., str]


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def start(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Start:
    """Starts a training in this process, which must refuse it, and returns what it says."""
    from pipeline.cli.main import main

    config = write_config(tmp_path, data)

    def run(*overrides: str) -> str:
        arguments = ["esolm", "train", str(config), "parallel.tp=1", *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 64
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    return run


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_missing_tokenizer(data: Path, start: Start) -> None:
    shutil.rmtree(data / "tokenizer")
    error = start()
    assert "tokenizer.model: missing or unreadable (No such file or directory)" in error
    assert "Restore the folder" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("place", [0, 50, -1])
def test_a_changed_byte_of_the_tokenizer(data: Path, start: Start, name: str, place: int) -> None:
    flip(data / "tokenizer" / name, place)
    error = start("data.verify=none")
    assert f"{data / 'tokenizer' / name}: changed, sha256" in error
    assert len(error.splitlines()) == 1


def test_a_tokenizer_of_another_vocabulary(data: Path, start: Start) -> None:
    make_tokenizer(data / "tokenizer", 410)
    error = start()
    assert "tokenizer.model: changed" in error
    assert len(error.splitlines()) == 1


def test_a_dataset_of_format_1_names_its_tokenizer(data: Path, start: Start) -> None:
    """Its manifest knows only the fingerprint."""
    shutil.rmtree(data)
    shutil.copytree(Path(__file__).parents[2] / "data" / "dataset_format_1", data)
    make_tokenizer(data / "tokenizer", 410)
    error = start("train.valid_every_steps=0")
    assert "is not the tokenizer that the tokens were made with: fingerprint" in error
    (data / "tokenizer" / "tokenizer.model").write_bytes(b"garbage")
    assert "is not a SentencePiece model" in start("train.valid_every_steps=0")


def test_a_kind_that_was_put_beside_it(data: Path, start: Start) -> None:
    """Another file of the folder makes another tokenizer of it, and export would find out."""
    (data / "tokenizer" / "tokenizer_config.json").write_text("{}")
    error = start()
    assert str(data / "tokenizer") in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("split", ["train", "valid"])
def test_verify_full_names_a_changed_token(data: Path, start: Start, split: str) -> None:
    [shard] = read_manifest(data).splits[split]
    flip(data / shard.name, shard.member_offset + 200)
    error = start("data.verify=full", "train.valid_every_steps=4")
    assert f"{data / shard.name}: changed, sha256" in error
    error = start("data.verify=sampled", "train.valid_every_steps=4")
    assert f"{data / shard.name}, member 0, the 1024 tokens from byte 512 on" in error


def test_an_unknown_verify_is_named(start: Start) -> None:
    assert "data.verify is 'all'; choose none or sizes or sampled or full" in start(
        "data.verify=all"
    )
