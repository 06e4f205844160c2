"""What a run checks of its dataset before it trains."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.cli.main import main
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.train.check_data import share_problems
from tests.data_prep.corpus import make_tokenizer
from tests.e2e.runs import finish, start, write_config


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "data"))


def problems(data: Path, verify: str, rank: int = 0, world_size: int = 1) -> list[str]:
    return share_problems(
        TokenDataset(data, "train"), verify, 1, lambda num_bytes: None, rank, world_size
    )


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


def refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit code of a start in this process, which must be refused before there is a run."""
    config = write_config(tmp_path, data)
    arguments = ["esolm", "train", str(config), "parallel.tp=1", "data.verify=none"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not (tmp_path / "run").exists()
    return stopped.value.code


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def flipped(folder: Path) -> None:
    change(folder / "tokenizer.model", 10**9)


def garbage(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"garbage")


def another(folder: Path) -> None:
    shutil.rmtree(folder)
    make_tokenizer(folder, vocab_size=450)


def another_kind(folder: Path) -> None:
    """A file beside it makes another tokenizer of the folder."""
    (folder / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "tokenizer does not exist"),
        (flipped, "is not the model that tokenizer.json describes"),
        (garbage, "is not a SentencePiece model"),
        (another, "is not the tokenizer that the tokens were made with: fingerprint"),
        (another_kind, "looks like a tokenizer directory of transformers"),
    ],
)
def test_a_start_refuses_another_tokenizer_in_one_line(
    damage: Callable[[Path], None],
    words: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(data / "tokenizer")
    assert refused(data, tmp_path, monkeypatch) == 64
    [line] = [line for line in capfd.readouterr().err.splitlines() if "LOG(" not in line]
    assert line.startswith(f"error: {data / 'tokenizer'}")
    assert words in line


@pytest.mark.dist
@pytest.mark.check
def test_a_run_is_refused_in_one_message(data: Path, tmp_path: Path) -> None:
    change(data / read_manifest(data).splits["valid"][0].name, 10**9)
    config = write_config(tmp_path, data)
    said = finish(start("train", str(config), "--ranks", "2", "data.verify=full"), 64)
    assert "changed, sha256" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
