"""The bundle's tokenizer gives the ids of training and loses nothing."""

import json
from pathlib import Path

import pytest

from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.export.bundle import tokenization_esolm
from esolm.pipeline.export.bundle.tokenization_esolm import EsoLMTokenizer
from esolm.pipeline.export.gate_reload import EDGE_TEXTS


@pytest.fixture
def directory(tokenizer_directory: Path, tmp_path: Path) -> Path:
    load_tokenizer(tokenizer_directory).save_for_bundle(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", EDGE_TEXTS)
def test_edge_texts(directory: Path, tokenizer_directory: Path, text: str) -> None:
    tokenizer = EsoLMTokenizer.from_pretrained(directory)
    ids = tokenizer(text)["input_ids"]
    assert ids == load_tokenizer(tokenizer_directory).encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "unit", ["def", "for i in range(10):\n    pass ", "ab\u2581", "\U0001f600 "]
)
def test_long_texts_are_cut_where_training_cuts_them(
    directory: Path, tokenizer_directory: Path, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut in a text without spaces divides a piece, so that whole it would have other ids."""
    text = unit * (200_001 // len(unit))
    expected = load_tokenizer(tokenizer_directory).encode(text)
    tokenizer = EsoLMTokenizer.from_pretrained(directory)
    assert tokenizer(text)["input_ids"] == expected
    assert tokenizer.decode(expected) == text
    if unit == "def":
        monkeypatch.setattr(tokenization_esolm, "PART_CHARACTERS", len(text))
        assert tokenizer(text)["input_ids"] != expected


def test_special_tokens(directory: Path) -> None:
    tokenizer = EsoLMTokenizer.from_pretrained(directory)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.mask_token_id == 3
    assert 3 not in tokenizer("a [MASK] b")["input_ids"]
    assert 3 in tokenizer("a [MASK] b", split_special_tokens=False)["input_ids"]
    assert len(tokenizer) == tokenizer.vocab_size
    assert set(tokenizer("text")) == {"input_ids", "attention_mask"}


def test_padding_is_marked(directory: Path) -> None:
    """What `generate` must refuse can be seen in what the tokenizer returns."""
    tokenizer = EsoLMTokenizer.from_pretrained(directory, padding_side="left")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = tokenizer(["a", "a longer text, by far"], padding=True)
    short = len(tokenizer("a")["input_ids"])
    assert batch["attention_mask"][0][:1] == [0]
    assert sum(batch["attention_mask"][0]) == short
    assert all(batch["attention_mask"][1])


def test_masks_are_shown_and_spaces_kept(directory: Path) -> None:
    tokenizer = EsoLMTokenizer.from_pretrained(directory)
    ids = [*tokenizer("def f")["input_ids"], 3, 3, *tokenizer(" return")["input_ids"], 2]
    assert tokenizer.decode(ids) == "def f[MASK][MASK] return</s>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "def f return"


def test_saved_again(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    EsoLMTokenizer.from_pretrained(directory).save_pretrained(copy)
    assert EsoLMTokenizer.from_pretrained(copy)("x = 1\n")["input_ids"]


def test_no_file_that_transformers_would_take_for_its_own(directory: Path) -> None:
    assert not (directory / "tokenizer.json").exists()
    record = json.loads((directory / "tokenizer_config.json").read_text())
    assert record["auto_map"]["AutoTokenizer"] == ["tokenization_esolm.EsoLMTokenizer", None]
