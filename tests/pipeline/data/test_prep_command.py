"""The commands of `esolm prep`, as a user types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.cli.prep import app
from tests.data_prep.corpus import text_of, write_jsonl


def prep(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", 60)


def test_the_whole_way_from_text_to_a_sample(corpus: Path, tmp_path: Path) -> None:
    tokenizer, data = tmp_path / "tok", tmp_path / "data"
    prep("tokenizer", corpus, "--vocab-size", 400, "--out", tokenizer)
    tokenize = ["tokenize", corpus, "--tokenizer", tokenizer, "--out", data, "--tasks", 2]
    assert "1 tasks done, 0 skipped" in prep(*tokenize, "--task", 1)
    with pytest.raises(DataError, match="1 of 2 tasks are not finished: 0"):
        prep("merge", data)
    assert "1 tasks done, 1 skipped" in prep(*tokenize)
    assert "fingerprint" in prep("merge", data)
    assert "as they were written" in prep("verify", data)
    shown = prep("inspect", data, "--sample", 10**9, "--seq-len", 32)
    assert "sample 1000000000 of split train" in shown
    with pytest.raises(DataError, match="valid_fraction: was"):
        prep(*tokenize, "--valid-fraction", 0.3)
    prep(*tokenize, "--valid-fraction", 0.3, "--overwrite", "--workers", 2)
    assert not (data / "manifest.json").exists()
    prep("merge", data)
    assert read_manifest(data).splits["valid"]


@pytest.mark.check
def test_a_tokenizer_of_the_default_size_can_be_trained(tmp_path: Path) -> None:
    assert "32,000 pieces" in prep("tokenizer", "--from-python-stdlib", "--out", tmp_path)


def test_a_sample_too_small_for_the_vocabulary_names_its_option(
    corpus: Path, tmp_path: Path
) -> None:
    train = ["tokenizer", corpus, "--out", tmp_path / "tok"]
    with pytest.raises(DataError, match=r"Raise --max-sentences \(prep\.max_sentences\), or a sm"):
        prep(*train, "--max-sentences", 50)
    with pytest.raises(DataError, match="Give more text, or a smaller --vocab-size"):
        prep(*train)


def test_bad_documents_are_an_error_or_counted(data_path: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": text_of(1)}) + "\nnot JSON\n")
    arguments = ["tokenize", corpus, "--tokenizer", data_path / "tokenizer", "--out"]
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: invalid JSON") as caught:
        prep(*arguments, tmp_path / "data")
    assert caught.value.exit_code == 64
    assert "1 bad" in prep(*arguments, tmp_path / "other", "--on-bad-document", "skip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "2", "--task", "2"], "--task is 2"),
        (["--task", "0", "--overwrite"], "--overwrite with --task"),
        (["--tasks", "0", "--valid-fraction", "1.5"], "--tasks is 0.*--valid-fraction is 1.5"),
        (["--on-bad-document", "ignore"], "'error' or 'skip'"),
    ],
)
def test_bad_options_are_named(
    data_path: Path, corpus: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    start = ["tokenize", corpus, "--tokenizer", data_path / "tokenizer", "--out", tmp_path / "d"]
    with pytest.raises(DataError, match=message):
        prep(*start, *arguments)


@pytest.mark.parametrize(
    "command", ["tokenizer", "tokenize", "status", "merge", "verify", "inspect"]
)
def test_every_help_has_an_example(command: str) -> None:
    assert f"esolm prep {command} " in prep(command, "--help")
