"""What a run checks of its dataset before it trains."""

import shutil
from pathlib import Path

import pytest

from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.train.check_data import _problems
from tests.data_prep.corpus import make_tokenizer
from tests.e2e.runs import finish, start, write_config


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "data"))


def problems(data: Path, verify: str, rank: int = 0, world_size: int = 1) -> list[str]:
    return _problems(data, verify, 1, lambda num_bytes: None, rank, world_size)


def change(path: Path, every: int) -> None:
    """Flips a bit of tokens in the first member, without leaving the vocabulary."""
    content = bytearray(path.read_bytes())
    for place in range(512, len(content) - 1024, every):
        content[place] ^= 1
    path.write_bytes(content)


def test_as_much_is_checked_as_is_asked_for(data: Path) -> None:
    for verify in ("none", "sizes", "sampled", "full"):
        assert problems(data, verify) == []
    shard = read_manifest(data).splits["train"][0].name
    change(data / shard, 10**9)
    assert problems(data, "sizes") == []
    (found,) = problems(data, "full")
    assert f"{shard}: changed, sha256" in found
    change(data / shard, 100)
    (found,) = problems(data, "sampled")
    assert f"{shard}, member 0, byte" in found


def test_ranks_share_the_work(data: Path) -> None:
    shard = read_manifest(data).splits["train"][0].name
    change(data / shard, 100)
    for verify in ("sampled", "full"):
        found = [problems(data, verify, rank, 2) for rank in range(2)]
        assert [len(each) for each in found] == [1, 0]


def test_the_tokenizer_is_checked_in_any_case(data: Path, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other", vocab_size=450)
    shutil.rmtree(data / "tokenizer")
    (found,) = problems(data, "none")
    assert "tokenizer does not exist" in found
    shutil.copytree(other, data / "tokenizer")
    (found,) = problems(data, "none")
    assert "fingerprint" in found
    (data / "tokenizer" / "tokenizer.model").write_bytes(b"garbage")
    (found,) = problems(data, "none")
    assert "is not a SentencePiece model" in found
    assert problems(data, "none", rank=1, world_size=2) == []


@pytest.mark.dist
@pytest.mark.check
def test_a_run_is_refused_in_one_message(data: Path, tmp_path: Path) -> None:
    change(data / read_manifest(data).splits["valid"][0].name, 10**9)
    config = write_config(tmp_path, data)
    said = finish(start("train", str(config), "--ranks", "2", "data.verify=full"), 64)
    assert "changed, sha256" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
