"""Tokens are checked while they are read: a changed one is an error that names its place."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import MEMBER_TOKENS
from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.data import checksums
from esolm.pipeline.data.checksums import crc32
from esolm.pipeline.data.dataset import TokenDataset

START = 512
"""The byte of a tar at which its first member's tokens begin."""


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_checked_and_unchecked_rows_are_the_same(data_path: Path) -> None:
    checked = TokenDataset(data_path, "train")
    unchecked = TokenDataset(data_path, "train", checked=False)
    assert checked.num_tokens > MEMBER_TOKENS, "rows run over the ends of members, too"
    starts = np.random.default_rng(0).integers(0, checked.num_tokens - 3000, 200)
    ends = np.cumsum([shard.num_tokens for shard in checked.shards])[:-1]
    starts = np.concatenate([starts, [0, MEMBER_TOKENS - 1, MEMBER_TOKENS], ends - 1, ends])
    starts = np.minimum(starts, checked.num_tokens - 3000)
    for length in (1, 64, 1024, 3000):
        one, other = (data.read_many(starts, length) for data in (checked, unchecked))
        assert (one == other).all()
    # More rows than are read at a time, some over several members and shards, all out of order.
    every = unchecked.read(0, checked.num_tokens)
    for length, count in ((10, 1000), (2 * MEMBER_TOKENS + 5, 20)):
        places = np.random.default_rng(1).integers(0, checked.num_tokens - length, count)
        for row, place in zip(checked.read_many(places, length), places.tolist(), strict=True):
            assert (row == every[place : place + length]).all()


def test_a_changed_token_is_named_by_shard_member_and_byte(copy_path: Path) -> None:
    """It is of the vocabulary, so that nothing else would notice."""
    shard = read_manifest(copy_path).splits["train"][0]
    flip(copy_path / shard.name, START + 2 * 5000)
    data = TokenDataset(copy_path, "train")
    assert len(data.read(0, 4096)) == 4096, "what is whole is read"
    byte = START + 2 * 4096
    with pytest.raises(DataError, match=rf"{shard.name}, member 0, byte {byte}: the next 1024"):
        data.read(4500, 600)
    assert len(TokenDataset(copy_path, "train", checked=False).read(4500, 600)) == 600


def test_changed_checksums_are_noticed(copy_path: Path) -> None:
    shard = read_manifest(copy_path).splits["train"][0]
    flip(copy_path / shard.crc_name, 0)
    data = TokenDataset(copy_path, "train")
    for _ in range(2):  # the first look is no reason to trust them at the second
        with pytest.raises(DataError, match=rf"{shard.crc_name}: changed, sha256"):
            data.read(50_000, 10)
    assert len(data.read(shard.num_tokens, 10)) == 10, "the next shard's are whole"


def test_a_shard_and_its_checksums_may_not_both_be_anothers(copy_path: Path) -> None:
    """They belong together, and have the sizes that the manifest says."""
    first, second, *_ = read_manifest(copy_path).splits["train"]
    size = first.num_bytes
    for name, other in ((first.name, second.name), (first.crc_name, second.crc_name)):
        content = (copy_path / other).read_bytes()
        kept = (copy_path / name).stat().st_size
        (copy_path / name).write_bytes(content[:kept].ljust(kept, b"\0"))
    assert (copy_path / first.name).stat().st_size == size
    with pytest.raises(DataError, match=rf"{first.crc_name}: changed, sha256"):
        TokenDataset(copy_path, "train").read(0, 10)


@pytest.mark.parametrize("name", ["name", "crc_name"])
def test_a_file_that_goes_away_in_use_is_named(copy_path: Path, name: str) -> None:
    data, shard = TokenDataset(copy_path, "train"), read_manifest(copy_path).splits["train"][0]
    (copy_path / getattr(shard, name)).unlink()
    with pytest.raises(DataError, match=rf"{getattr(shard, name)} is missing\. Put it back"):
        data.read(0, 10)


def test_checksums_are_those_of_zlib() -> None:
    """Whichever package computes them here: the format says so."""
    content = memoryview(bytes(range(256)) * 16)
    for size in (0, 1, 2, 7, 64, 2047, 2048, 4096):
        assert crc32(content[:size]) == zlib.crc32(content[:size])


def test_checksums_that_there_is_no_room_for_are_read(
    data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = np.random.default_rng(0).integers(0, 100_000, 50)
    kept, read = TokenDataset(data_path, "train"), TokenDataset(data_path, "train")
    monkeypatch.setattr(checksums, "KEPT_BYTES", 0)
    read = TokenDataset(data_path, "train")
    for _ in range(3):
        assert (read.read_many(starts, 3000) == kept.read_many(starts, 3000)).all()
