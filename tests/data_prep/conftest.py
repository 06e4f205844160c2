import json
import shutil
from pathlib import Path

import pytest

from tests.data_prep.corpus import make_job, make_tokenizer, run_job, text_of
from tests.data_prep.stored import NUM_DOCUMENTS


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset `data` of three tasks, and `one` of the same documents in one."""
    folder = tmp_path_factory.mktemp("datasets")
    tokenizer = make_tokenizer(folder / "tokenizer")
    pages = [{"text": text_of(n, 5 + n), "url": f"u{n}"} for n in range(NUM_DOCUMENTS - 1)]
    pages.append({"text": "long " + text_of(1, 60_000), "url": "long"})
    source = folder / "pages.jsonl"
    source.write_text("".join(json.dumps(page) + "\n" for page in pages))
    for name, tasks in (("data", 3), ("one", 1)):
        job = make_job(
            source, tokenizer, folder / name, num_tasks=tasks, valid_fraction=0.1,
            shard_tokens=3000, metadata=("url",),
        )  # fmt: skip
        run_job(job, tokenizer)
    return folder


@pytest.fixture
def copied(datasets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(datasets / "data", tmp_path / "data"))
