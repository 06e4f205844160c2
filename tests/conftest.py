"""Fixtures that more than one package of tests uses."""

from pathlib import Path

import pytest

from tests.data_prep.corpus import make_job, make_tokenizer, run_job, write_jsonl


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared dataset with a train and a valid split, 400 pieces."""
    folder = tmp_path_factory.mktemp("dataset")
    tokenizer = make_tokenizer(folder / "tokenizer")
    source = write_jsonl(folder / "text.jsonl", 60)
    run_job(make_job(source, tokenizer, folder / "data", valid_fraction=0.2), tokenizer)
    return folder / "data"
