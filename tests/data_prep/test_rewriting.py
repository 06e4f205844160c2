"""Datasets made of a dataset: the same tokens in other shards; kills, damage and full disks."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import SPLITS, read_manifest
from esolm.pipeline.cli.prep import app
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.dividing import Division, divide, part_of
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.data.rewriting import repack
from tests.damages import DAMAGES
from tests.data_prep.corpus import make_job, run_job
from tests.data_prep.stored import NUM_DOCUMENTS, stored, verify


def rows(data: Path, seq_len: int = 64) -> list[list[int]]:
    reader = SampleReader(TokenDataset(data, "train"), seq_len, seed=3)
    numbers = np.arange(2 * reader.num_sequences, dtype=np.int64)
    return [list(map(int, row)) for row in reader.read(numbers)]


@pytest.mark.parametrize("shard_tokens", [300, 2000, 300_000, 10**9])
def test_repacking_keeps_tokens_documents_and_what_is_kept(
    shard_tokens: int, datasets: Path, tmp_path: Path
) -> None:
    source, new = datasets / "data", tmp_path / "new"
    repack(source, new, shard_tokens)
    verify(new)
    for split in SPLITS:
        assert stored(new, split) == stored(source, split)
        *full, _ = read_manifest(new).splits[split]
        for shard in full:
            ends = np.load(new / shard.ends_name)
            assert shard.num_tokens >= shard_tokens
            assert len(ends) == 1 or ends[-2] < shard_tokens
    assert rows(new) == rows(source)
    assert read_manifest(new).counts == read_manifest(source).counts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_shards_of_the_same_size_are_the_same(datasets: Path, tmp_path: Path) -> None:
    """However they were packed in between."""
    repack(datasets / "one", tmp_path / "large", 10**9)
    repack(tmp_path / "large", tmp_path / "again", 3000)
    found, expected = (read_manifest(data) for data in (tmp_path / "again", datasets / "one"))
    assert found.fingerprint == expected.fingerprint
    assert found.splits == expected.splits


def test_a_dataset_of_the_format_before_gets_checksums(copied: Path, tmp_path: Path) -> None:
    path = copied / "manifest.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    record["format_version"] = 1
    for shards in record["splits"].values():
        for shard in shards:
            os.remove(copied / shard.pop("crc_name"))
            del shard["crc_bytes"], shard["crc_sha256"]
    path.write_text(json.dumps(record))
    expected = stored(copied, "train")
    repack(copied, tmp_path / "new", 3000)
    assert all(shard.crc_name for shard in read_manifest(tmp_path / "new").shards)
    assert stored(tmp_path / "new", "train") == expected
    tar = copied / read_manifest(copied).shards[0].name
    content = bytearray(tar.read_bytes())
    content[5000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"\.tar: changed, sha256"):
        repack(copied, tmp_path / "other", 3000)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_never_copied(
    damage: Callable[[Path], None], datasets: Path, tmp_path: Path
) -> None:
    shards = read_manifest(datasets / "data").splits["train"]
    shard = max(shards, key=lambda each: each.num_tokens)
    for number, (name, _, _) in enumerate(shard.files()):
        data = Path(shutil.copytree(datasets / "data", tmp_path / f"data{number}"))
        damage(data / name)
        with pytest.raises(DataError, match=Path(name).name.partition(".")[0]):
            repack(data, tmp_path / "new", 10**9)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("new")]


def test_a_killed_one_is_begun_again_by_the_same_command(copied: Path, tmp_path: Path) -> None:
    outs = [f"{tmp_path / 'a'}=0.5", f"{tmp_path / 'b'}=0.5"]
    child = os.fork()
    if child == 0:  # it dies where it first tells how far it is
        divide(copied, Division(tuple(map(part_of, outs))), 3000, lambda num_tokens: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != "data")
    assert left == ["a.esolm-lock", "a.esolm-part", "b.esolm-lock", "b.esolm-part"]
    assert list((tmp_path / "b.esolm-part" / "shards").iterdir())
    divide(copied, Division(tuple(map(part_of, outs))), 3000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "data"]
    found = [read_manifest(tmp_path / name).counts["documents"] for name in ("a", "b")]
    assert sum(found) == NUM_DOCUMENTS


def test_two_do_not_write_the_same(copied: Path, tmp_path: Path) -> None:
    with open(tmp_path / "new.esolm-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / "new.esolm-part").mkdir()
        with pytest.raises(DataError, match="new is being written by another process"):
            repack(copied, tmp_path / "new", 3000)
        assert (tmp_path / "new.esolm-part").exists()
    repack(copied, tmp_path / "new", 3000)


def test_a_full_disk(datasets: Path, mounted: Callable[[str], Path]) -> None:
    place = mounted("size=160k")
    with pytest.raises(OSError, match=r"No space left on device.*/new"):
        repack(datasets / "data", place / "new", 3000)
    assert list(place.iterdir()) == []


def test_text_is_not_written_into_one(datasets: Path, tmp_path: Path) -> None:
    repack(datasets / "data", tmp_path / "new", 3000)
    job = make_job(datasets / "pages.jsonl", datasets / "tokenizer", tmp_path / "new")
    with pytest.raises(DataError, match=r"new is no place for .* it holds origin\.json"):
        run_job(job, datasets / "tokenizer")


def prep(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_commands(datasets: Path, tmp_path: Path) -> None:
    data = datasets / "data"
    told = prep("repack", data, "--out", tmp_path / "new", "--shard-tokens", 10**6)
    assert f"{NUM_DOCUMENTS - len(stored(data, 'valid'))} documents, 1 shards" in told
    assert '{"url": "' in prep("inspect", tmp_path / "new", "--sample", 7, "--seq-len", 64)
    assert prep("repack", data, "--out", tmp_path / "new", "--shard-tokens", 10**6) == told
    with pytest.raises(DataError, match="--shard-tokens is 0"):
        prep("repack", data, "--out", tmp_path / "x", "--shard-tokens", 0)
    outs = ["--out", f"{tmp_path / 'a'}=0.5", "--out", f"{tmp_path / 'b'}=0.25"]
    told = prep("split", data, *outs, "--valid-fraction", 0.3, "--seed", 5)
    assert "0.25 of the documents are in none of them" in told
    assert prep("verify", tmp_path / "a").startswith(f"{tmp_path / 'a'}: ")
    with pytest.raises(DataError, match=r"neither manifest\.json nor tasks/"):
        prep("split", tmp_path, *outs)
