"""Rows that touch damage are replaced, by the same rows in every layout and after every restart."""

import json
import logging
import os
import shutil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import CHECKED_TOKENS, MEMBER_TOKENS
from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.data.block_cache import SMALLEST_BYTES, CachePlace
from esolm.pipeline.data.damage import DamagedPart
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.index import permute
from esolm.pipeline.data.mixture import MixtureReader, MixtureSource
from esolm.pipeline.data.quarantine import MOST_TRIES, Met, Quarantine
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.run.quarantine_file import QuarantineFile
from tests.http_ranges import RangeServer
from tests.pipeline.data.test_checked_reading import flip

SEQ_LEN, SEED = 64, 5
DAMAGED = {0: (5000, 5100, 70_000), 1: (0,), 2: (80_000,)}
"""Tokens by the number of the shard: two of one part, of a second member, first and last parts."""


def damage(data: Path) -> None:
    for number, places in DAMAGED.items():
        for token in places:
            member, within = divmod(token, MEMBER_TOKENS)
            shard = data / read_manifest(data).splits["train"][number].name
            flip(shard, 512 + member * (2 * MEMBER_TOKENS + 512) + 2 * within)


def is_good(data: Path, sequence: int, content: int = SEQ_LEN) -> bool:
    """By plain arithmetic over the stream: whether no token of the row is of a damaged part."""
    shards, first = read_manifest(data).splits["train"], 0
    bad = set()
    for number, shard in enumerate(shards):
        for token in DAMAGED.get(number, ()):
            begin = token // CHECKED_TOKENS * CHECKED_TOKENS
            end = min(begin + CHECKED_TOKENS, shard.num_tokens)
            bad |= set(range(first + begin, first + end))
        first += shard.num_tokens
    return bad.isdisjoint(range(sequence * content, (sequence + 1) * content))


def expected_rows(data: Path, whole: Path) -> tuple[np.ndarray, int]:
    """Every row of an epoch, and how many of them are others than they would be."""
    dataset = TokenDataset(whole, "train")
    size = dataset.num_tokens // SEQ_LEN
    every = dataset.read(0, size * SEQ_LEN).reshape(size, SEQ_LEN)
    zero = np.zeros(1, dtype=np.int64)
    rows, replaced = [], 0
    good = [is_good(data, sequence) for sequence in range(size)]
    order = permute(np.arange(size), size, SEED, np.zeros(size, dtype=np.int64))
    for sequence in order.tolist():
        chosen, step = sequence, 0
        while not good[chosen]:
            step += 1
            place = np.array([(sequence + step) % size])
            chosen = int(permute(place, size, SEED ^ 0x7175_6172_616E_7469, zero)[0])
        replaced += step > 0
        rows.append(every[chosen])
    return np.stack(rows), replaced


def reader_of(data: Path | str, told: list[Met], cache: Path | None = None) -> SampleReader:
    place = CachePlace(str(cache), SMALLEST_BYTES)
    dataset = TokenDataset(data, "train", cache=place, may_be_short=True)
    return SampleReader(dataset, SEQ_LEN, SEED, quarantine=Quarantine(told.append))


@pytest.fixture
def damaged(copy_path: Path) -> Path:
    damage(copy_path)
    return copy_path


@pytest.mark.parametrize("at", ["folder", pytest.param("address", marks=pytest.mark.check)])
def test_rows_of_damage_are_replaced_and_damage_is_told_once(
    at: str, damaged: Path, data_path: Path, tmp_path: Path
) -> None:
    expected, replaced = expected_rows(damaged, data_path)
    assert 50 < replaced < 70, "four parts of 1,024 tokens, and the rows at their ends"
    plain = SampleReader(TokenDataset(data_path, "train"), SEQ_LEN, SEED)
    with RangeServer(damaged).started() as url:
        # In batches of several sizes, as after a restart in another layout.
        address, batches = (damaged, (7, 500)) if at == "folder" else (url, (500,))
        told: list[Met] = []
        reader = reader_of(address, told, tmp_path / "cache")
        for batch in batches:
            samples = np.arange(len(expected))
            parts = [samples[a : a + batch] for a in range(0, len(samples), batch)]
            assert (np.concatenate([reader.read(part) for part in parts]) == expected).all()
        assert reader.quarantine is not None
        assert reader.quarantine.replaced == len(batches) * replaced
        found = sorted((Path(m.part.shard).name, m.part.member, m.part.byte) for m in told)
        shards = [Path(s.name).name for s in read_manifest(damaged).splits["train"]]
        stride = 2 * MEMBER_TOKENS + 512
        assert found == [
            (shards[0], 0, 512 + 2 * 4096),
            (shards[0], 1, 512 + stride + 2 * (70_000 - MEMBER_TOKENS) // 2048 * 2048),
            (shards[1], 0, 512),
            (shards[2], 1, 512 + stride + 2 * (80_000 - MEMBER_TOKENS) // 2048 * 2048),
        ]
        for met in told:
            sample = np.array([met.sample % len(expected)])
            assert (plain.read(sample)[0] != expected[sample[0]]).any(), "its row touched it"
            assert (met.split, met.source) == ("train", str(address))


def test_without_damage_nothing_is_another(data_path: Path) -> None:
    told: list[Met] = []
    reader, plain = (
        reader_of(data_path, told), SampleReader(TokenDataset(data_path, "train"), SEQ_LEN, SEED)
    )  # fmt: skip
    samples = np.arange(0, 2 * plain.num_sequences, 3)
    assert (reader.read(samples) == plain.read(samples)).all()
    assert told == []


@pytest.mark.parametrize("packing", ["continuous", "wrapped"])
def test_a_mixture_replaces_within_the_source_in_every_layout(
    packing: str, source_folders: dict[str, Path], tmp_path: Path
) -> None:
    folders = {}
    for name in "abc":
        folders[name] = Path(shutil.copytree(source_folders[name], tmp_path / name))
    shard = folders["b"] / read_manifest(folders["b"]).splits["train"][0].name
    for token in (100, 2500):
        flip(shard, 512 + 2 * token)
    told: list[Met] = []

    def read(samples: np.ndarray) -> np.ndarray:
        """Read by a process that knows of nothing before."""
        sources = [
            MixtureSource(name, TokenDataset(path, "train"), weight)
            for (name, path), weight in zip(folders.items(), (2, 1, 1), strict=True)
        ]
        quarantine = Quarantine(told.append)
        return MixtureReader(sources, 32, 3, "global", packing, quarantine).read(samples)

    samples = np.arange(600)
    whole = read(samples)
    assert {Path(met.source).name for met in told} == {"b"}
    assert len(told) == 2
    for replicas, batch in ((2, 8), (4, 24)):
        for first in (0, 24, 576):
            parts = [
                read(samples[first + rank : first + batch : replicas]) for rank in range(replicas)
            ]
            for rank, part in enumerate(parts):
                assert (part == whole[first + rank : first + batch : replicas]).all()
    sound = [
        MixtureSource(name, TokenDataset(source_folders[name], "train"), weight)
        for name, weight in zip("abc", (2, 1, 1), strict=True)
    ]
    reader = MixtureReader(sound, 32, 3, "global", packing)
    others = np.flatnonzero((whole != reader.read(samples)).any(axis=1))
    assert len(others) > 0
    number = reader.index.fingerprints.index(sound[1].dataset.fingerprint)
    assert set(reader.locate(samples)[0][others].tolist()) == {number}
    alone = SampleReader(TokenDataset(source_folders["b"], "train"), 32, 3, "none", packing)
    of_b = {tuple(row) for row in alone.read(np.arange(alone.num_sequences)).tolist()}
    assert all(tuple(row) in of_b for row in whole[others].tolist())


def test_a_shard_that_was_cut_short_is_opened_and_told_of_once(copy_path: Path) -> None:
    shards = read_manifest(copy_path).splits["train"]
    os.truncate(copy_path / shards[1].name, 512 + 2 * 20_000 + 1)
    with pytest.raises(DataError, match="cut short"):
        TokenDataset(copy_path, "train")
    told: list[Met] = []
    reader = reader_of(copy_path, told)
    rows = reader.read(np.arange(reader.num_sequences))
    assert rows.shape == (reader.num_sequences, SEQ_LEN)
    (met,) = told
    assert Path(met.part.shard).name == Path(shards[1].name).name
    assert "cut short" in met.part.problem
    (copy_path / shards[1].name).unlink()
    with pytest.raises(DataError, match="missing"):
        reader_of(copy_path, [])


def test_missing_files_and_damaged_checksums_remain_errors(copy_path: Path) -> None:
    shards = read_manifest(copy_path).splits["train"]
    reader = reader_of(copy_path, [])
    flip(copy_path / shards[0].crc_name, 0)
    (copy_path / shards[2].name).unlink()
    for number, problem in ((0, "changed, sha256"), (2, "is missing")):
        begin = sum(shard.num_tokens for shard in shards[:number]) // SEQ_LEN + 1
        with pytest.raises(DataError, match=problem):
            reader.read_sequences(np.array([begin]), np.array([0]))


def test_too_much_damage_ends_the_run(copy_path: Path) -> None:
    for shard in read_manifest(copy_path).splits["train"]:
        path = copy_path / shard.name
        path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(
        DataError, match=rf"all {MOST_TRIES} rows that were tried .* too much damage"
    ):
        reader_of(copy_path, []).read(np.array([0]))


def meet(path: Path, rank: int) -> None:
    file = QuarantineFile(path, rank)
    for byte in range(40):
        part = DamagedPart("data/shard.tar", 1, (byte * (rank + 1)) % 40, "is bad", "Mend it.")
        file.add(Met(part, "data", "train", byte))
    os._exit(0)


def test_each_part_is_listed_once_whichever_ranks_meet_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"torn')
    workers = [get_context("fork").Process(target=meet, args=(path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert sorted(line["byte"] for line in lines) == list(range(40))
    assert lines[0].keys() >= {"time", "shard", "member", "byte", "sample", "split", "rank"}
    part = DamagedPart("data/shard.tar", 1, 7, "is bad", "Mend it.")
    with caplog.at_level(logging.WARNING):
        QuarantineFile(path, 0).add(Met(part, "data", "train", 3))
        assert caplog.records == [], "the run was told of it before"
        QuarantineFile(tmp_path / "no" / "file", 0).add(Met(part, "data", "train", 3))
    assert "data/shard.tar, member 1, byte 7: is bad; rows that" in caplog.records[-1].getMessage()
