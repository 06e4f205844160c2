"""Tokens that were changed on disk: found while reading, or at the start, with their place."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import DataError, EsolmError
from data_prep.manifest import read_manifest
from pipeline.data.dataset import TokenDataset
from pipeline.data.reader import SampleReader
from pipeline.data.verification import check_content

FORMAT_1 = Path(__file__).parents[2] / "data" / "dataset_format_1"


@pytest.fixture
def path(data_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(data_path, tmp_path / "data")
    return tmp_path / "data"


def flip_token(path: Path, number: int, position: int) -> tuple[Path, int, int]:
    """Changes the lowest bit of a token of a train shard, which leaves it in the vocabulary.

    Returns the tar, the byte, and the position of the token in the split.
    """
    shards = read_manifest(path).splits["train"]
    shard = shards[number]
    offset = shard.member_offset + position // 65_536 * shard.member_stride + position % 65_536 * 2
    flip_byte(path / shard.name, offset)
    return path / shard.name, offset, sum(s.num_tokens for s in shards[:number]) + position


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0, 1023, 1024, 65_535, 65_536, 70_000, -1])
def test_a_changed_token_within_the_vocabulary_is_found(path: Path, position: int) -> None:
    whole = TokenDataset(path, "train")
    tokens = whole.read(0, whole.num_tokens)
    position %= read_manifest(path).splits["train"][1].num_tokens
    tar, offset, place = flip_token(path, 1, position)
    unchecked = TokenDataset(path, "train", check_reads=False)
    assert unchecked.read(place, 1) == tokens[place] ^ 1, "the same vocabulary"
    data = TokenDataset(path, "train")
    block = offset - position % 1024 * 2
    expected = rf"{tar}, member {position // 65_536}, the 1024 tokens from byte {block} on: crc32"
    for start, length in ((place, 1), (max(0, place - 700), 701), (place, 1500)):
        if start + length <= data.num_tokens:
            with pytest.raises(DataError, match=expected) as caught:
                data.read(start, length)
            assert "esolm prep verify" in str(caught.value)
    first = place - position % 1024
    assert (data.read(0, first) == tokens[:first]).all()
    assert (data.read(first + 1024, 5) == tokens[first + 1024 :][:5]).all() or position < 0


def rows(data: TokenDataset, seq_len: int) -> Iterator[np.ndarray]:
    reader = SampleReader(data, seq_len, seed=0, shuffle="none")
    yield from reader.read(np.arange(reader.num_sequences))


@pytest.mark.parametrize("seq_len", [1, 7, 1000, 1024, 3000])
def test_checked_tokens_are_the_same_tokens(data_path: Path, seq_len: int) -> None:
    checked = rows(TokenDataset(data_path, "valid"), seq_len)
    unchecked = rows(TokenDataset(data_path, "valid", check_reads=False), seq_len)
    assert all((a == b).all() for a, b in zip(checked, unchecked, strict=True))


def test_the_checksums_of_a_shard_are_those_of_the_manifest(path: Path) -> None:
    """A shard and its checksums, both put in place of another's, belong together."""
    first, second, *_ = read_manifest(path).splits["train"]
    flip_byte(path / first.crcs_name, 0)
    with pytest.raises(DataError, match=rf"{first.crcs_name}: changed, sha256"):
        TokenDataset(path, "train").read(50_000, 1)
    for name, other in ((first.name, second.name), (first.crcs_name, second.crcs_name)):
        shutil.copy(path / other, path / name)
    with pytest.raises(DataError, match=rf"{first.crcs_name}: changed, sha256"):
        TokenDataset(path, "train", check_sizes=False).read(0, 1)


def test_a_shard_that_goes_away_in_use_is_one_line(path: Path) -> None:
    data = TokenDataset(path, "train")
    (first, *_) = read_manifest(path).splits["train"]
    (path / first.name).unlink()
    with pytest.raises(DataError, match=r"train-00000-00000\.tar does not exist\. Run `esolm"):
        data.read(0, 1)
    (path / first.name).mkdir()
    with pytest.raises(EsolmError, match=r"cannot be read \(.*Is a directory.*start again") as got:
        data.read(0, 1)
    assert got.value.exit_code == 1, "it may pass by itself"


def check(path: Path, how: str, ranks: int = 1) -> list[str]:
    """The message of each rank that refuses the dataset."""
    splits = [TokenDataset(path, split, how != "none") for split in ("train", "valid")]
    messages = []
    for rank in range(ranks):
        try:
            check_content(splits, how, rank, ranks)
        except DataError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_start_checks_what_data_verify_says(path: Path, ranks: int) -> None:
    for how in ("none", "sizes", "sampled", "full"):
        assert check(path, how, ranks) == []
    tar, offset, _ = flip_token(path, 2, 3000)
    assert check(path, "none", ranks) == check(path, "sizes", ranks) == []
    [message] = check(path, "full", ranks)
    assert f"{tar}: changed, sha256" in message
    # Of a shard of so few blocks every one, or nearly so, is in the sample.
    flip_byte(tar, offset)
    flip_token(path, 2, 0)
    [message] = check(path, "sampled", ranks)
    assert f"{tar}, member 0, the 1024 tokens from byte 512 on" in message
    os.truncate(tar, 1024)
    assert check(path, "none", ranks) == []
    with pytest.raises(DataError, match="cut short"):
        check(path, "sizes", ranks)


def test_format_1_has_nothing_to_sample(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "old"
    shutil.copytree(FORMAT_1, path)
    check_content([TokenDataset(path, "train")], "sampled", 0, 1)
    assert "only the sizes were checked; data.verify=full checks every byte" in caplog.text
    flip_byte(path / "shards" / "train-00000-00000.tar", 600)
    assert TokenDataset(path, "train").read(0, 100).shape == (100,)
    with pytest.raises(DataError, match=r"train-00000-00000\.tar: changed, sha256"):
        check_content([TokenDataset(path, "train")], "full", 0, 1)
