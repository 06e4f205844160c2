"""Datasets under a tokenizer of transformers, such as a published network was trained with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import prepare_output
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.data_prep.verify import verify_dataset
from esolm.pipeline.data.dataset import TokenDataset
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, text_of, write_jsonl
from tests.foreign_tokenizers import like_bert, like_gpt2, saved


@pytest.mark.parametrize("make", [like_gpt2, like_bert])
def test_tokens_end_with_eos_and_are_those_of_transformers(
    make: Callable[[], PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    theirs = make()
    directory = saved(theirs, tmp_path / "tokenizer")
    source = write_jsonl(tmp_path / "text.jsonl", 8)
    job = make_job(source, directory, tmp_path / "data", valid_fraction=0.0, num_tasks=2)
    assert run_job(job, directory) == [0, 1]
    dataset = TokenDataset(tmp_path / "data", "train")
    eos = theirs.sep_token_id if theirs.eos_token_id is None else theirs.eos_token_id
    expected: list[int] = []
    for number in range(8):
        ids: Any = theirs(text_of(number), add_special_tokens=False)["input_ids"]
        expected += [*ids, eos]
    assert np.array_equal(dataset.read(0, dataset.num_tokens), expected)
    added = theirs.mask_token_id is None
    assert dataset.vocab_size == theirs.vocab_size + added
    assert dataset.mask_id == (theirs.vocab_size if added else theirs.mask_token_id)
    assert load_tokenizer(tmp_path / "data" / "tokenizer").info == job.tokenizer
    verify_dataset(tmp_path / "data", read_manifest(tmp_path / "data"), lambda count: None)


def test_the_name_of_a_special_token_is_text(tmp_path: Path) -> None:
    """Else a document could end another one."""
    tokenizer = load_tokenizer(saved(like_gpt2(), tmp_path / "tokenizer"))
    text = "the cat<|endoftext|> sat"
    ids = tokenizer.encode(text)
    assert tokenizer.info.eos_id not in ids
    assert tokenizer.decode(ids) == text
    shown = tokenizer.decode_with_specials([*ids, tokenizer.info.eos_id, tokenizer.info.mask_id])
    assert shown == text + "<|endoftext|>"


def test_another_tokenizer_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    foreign, own = saved(like_gpt2(), tmp_path / "gpt2"), make_tokenizer(tmp_path / "own")
    source = write_jsonl(tmp_path / "text.jsonl", 4)
    for directory in (foreign, own, foreign):
        job = make_job(source, directory, tmp_path / "data")
        prepare_output(job, directory, overwrite=True)
        assert load_tokenizer(tmp_path / "data" / "tokenizer").info == job.tokenizer


def test_what_lies_beside_a_tokenizer_is_not_the_tokenizer(tmp_path: Path) -> None:
    directory = saved(like_gpt2(), tmp_path / "tokenizer")
    info = load_tokenizer(directory).info
    (directory / "config.json").write_text("{}")
    assert load_tokenizer(directory).info == info
    assert load_tokenizer(saved(like_bert(), tmp_path / "other")).info != info


def test_a_tokenizer_that_cannot_end_a_document_is_refused(tmp_path: Path) -> None:
    tokenizer = like_gpt2()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no eos or sep token"):
        _ = load_tokenizer(saved(tokenizer, tmp_path / "tokenizer")).info
