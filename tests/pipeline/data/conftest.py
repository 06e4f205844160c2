import shutil
from pathlib import Path

import pytest

from tests.data_prep.corpus import make_job, make_tokenizer, run_job, write_jsonl


@pytest.fixture(scope="session")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 2 tasks, with shards of about 80,000 tokens (more than one member each)."""
    directory = tmp_path_factory.mktemp("dataset")
    tokenizer = make_tokenizer(directory / "tokenizer")
    corpus = write_jsonl(directory / "corpus.jsonl", 400)
    job = make_job(
        corpus,
        tokenizer,
        directory / "data",
        num_tasks=2,
        shard_tokens=80_000,
        valid_fraction=0.05,
    )
    run_job(job, tokenizer)
    return job.out


@pytest.fixture
def copy_path(data_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(data_path, tmp_path / "data")
    return tmp_path / "data"
