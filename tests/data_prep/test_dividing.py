"""Datasets that share out the documents of another one."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import SPLITS, read_manifest
from esolm.pipeline.data.dividing import Division, divide, part_of
from esolm.pipeline.data.rewriting import repack
from tests.data_prep.stored import NUM_DOCUMENTS, Stored, stored, verify


def place_of(document: Stored, purpose: bytes, seed: int) -> float:
    """Where docs/data.md says that a document stands, from 0 to 1."""
    content = np.array(document[0], dtype="<u4").tobytes()
    key = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(content, digest_size=8, person=purpose, key=key).digest()
    return int.from_bytes(digest, "little") / 2**64


@pytest.mark.parametrize("seed", [0, 7])
def test_documents_are_shared_out_by_their_hashes(
    seed: int, datasets: Path, tmp_path: Path
) -> None:
    parts = tuple(part_of(f"{tmp_path / name}={s}") for name, s in (("a", "0.7"), ("b", "1/5")))
    divide(datasets / "data", Division(parts, seed), 3000)
    for split in SPLITS:
        whole = stored(datasets / "data", split)
        places = [place_of(document, b"part", seed) for document in whole]
        first = [d for d, place in zip(whole, places, strict=True) if place < 0.7]
        second = [d for d, place in zip(whole, places, strict=True) if 0.7 <= place < 0.9]
        assert stored(tmp_path / "a", split) == first
        assert stored(tmp_path / "b", split) == second
    counts = [read_manifest(part.out).counts["documents"] for part in parts]
    assert abs(counts[0] - 0.7 * NUM_DOCUMENTS) < 20
    assert abs(counts[1] - 0.2 * NUM_DOCUMENTS) < 18
    assert sum(counts) < NUM_DOCUMENTS
    for part in parts:
        verify(part.out)


def test_parts_do_not_depend_on_the_shards(datasets: Path, tmp_path: Path) -> None:
    repack(datasets / "data", tmp_path / "large", 10**9)
    found = []
    for number, source in enumerate((datasets / "data", tmp_path / "large")):
        out = tmp_path / f"part{number}"
        divide(source, Division((part_of(f"{out}=0.5"),)), 3000)
        found.append(read_manifest(out).fingerprint)
    assert found[0] == found[1]


def test_a_larger_valid_split(datasets: Path, tmp_path: Path) -> None:
    whole = {split: stored(datasets / "data", split) for split in SPLITS}
    new = tmp_path / "new"
    divide(datasets / "data", Division((part_of(str(new)),), 0, 0.4), 3000)
    num_valid = len(whole["valid"])
    moved = (0.4 * NUM_DOCUMENTS - num_valid) / (NUM_DOCUMENTS - num_valid)
    goes = [place_of(document, b"valid", 0) < moved for document in whole["train"]]
    gone = [d for d, moves in zip(whole["train"], goes, strict=True) if moves]
    stays = [d for d, moves in zip(whole["train"], goes, strict=True) if not moves]
    assert stored(new, "valid") == whole["valid"] + gone
    assert stored(new, "train") == stays
    assert abs(num_valid + len(gone) - 0.4 * NUM_DOCUMENTS) < 20
    assert read_manifest(new).counts == read_manifest(datasets / "data").counts
    with pytest.raises(DataError, match=r"valid-fraction is 0\.01, and .* are in valid already"):
        divide(datasets / "data", Division((part_of("x"),), 0, 0.01), 3000)


def test_a_part_is_not_divided_by_the_same_hashes_again(datasets: Path, tmp_path: Path) -> None:
    divide(datasets / "data", Division((part_of(f"{tmp_path / 'half'}=0.5"),)), 3000)
    repack(tmp_path / "half", tmp_path / "packed", 10**9)
    for source in ("half", "packed"):
        halves = Division((part_of(f"{tmp_path / 'quarter'}=0.5"),))
        with pytest.raises(DataError, match=r"itself what --seed 0 left .* as --seed 1"):
            divide(tmp_path / source, halves, 3000)
    divide(tmp_path / "packed", Division((part_of(f"{tmp_path / 'quarter'}=0.5"),), 1), 3000)
    half, quarter = (read_manifest(tmp_path / n).counts["documents"] for n in ("half", "quarter"))
    assert 0.2 * half < quarter < 0.8 * half


@pytest.mark.parametrize(
    ("outs", "message"),
    [
        (["a=0.9", "b=0.2"], "more than 1 together"),
        (["a=0.5", "a=0.4"], "names a folder twice"),
        (["a=0"], "a share must be above 0"),
        (["a=much"], r"--out a=much: write DIR=SHARE"),
        (["a=1/0"], "write DIR=SHARE"),
        (["a", "b"], "more than 1 together"),
    ],
)
def test_shares_that_cannot_be(outs: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Division(tuple(map(part_of, outs)))


def test_a_part_without_documents_is_an_error(datasets: Path, tmp_path: Path) -> None:
    parts = tuple(part_of(f"{tmp_path / name}={s}") for name, s in (("a", "0.9"), ("b", "1e-9")))
    with pytest.raises(DataError, match="b would hold no document"):
        divide(datasets / "data", Division(parts), 3000)
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_is_not_done_again_and_nothing_is_overwritten(
    copied: Path, tmp_path: Path
) -> None:
    parts = tuple(part_of(f"{tmp_path / name}={s}") for name, s in (("a", "0.5"), ("b", "0.5")))
    divide(copied, Division(parts), 3000)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    expected = read_manifest(tmp_path / "b").fingerprint
    shutil.rmtree(tmp_path / "b")
    divide(copied, Division(parts), 3000)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before
    assert read_manifest(tmp_path / "b").fingerprint == expected
    for shares in (("0.4", "0.6"), ("0.5", "0.4")):
        names = zip(("a", "b"), shares, strict=True)
        others = tuple(part_of(f"{tmp_path / name}={share}") for name, share in names)
        with pytest.raises(DataError, match="exists and is something else"):
            divide(copied, Division(others), 3000)
    with pytest.raises(DataError, match="exists and is something else"):
        repack(copied, tmp_path / "a", 3000)
    with pytest.raises(DataError, match="exists and is something else"):
        repack(copied, copied, 3000)
    shard = tmp_path / "a" / read_manifest(tmp_path / "a").shards[0].ends_name
    shard.unlink()
    with pytest.raises(DataError, match=r"(?s)missing or unreadable.*Remove .*a and run the same"):
        divide(copied, Division(parts), 3000)
    with pytest.raises(DataError, match=r"remove .*a and run the same `esolm prep split`"):
        verify(tmp_path / "a")


def test_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(DataError, match=r"a folder twice; .* more than 1 .*; --seed is -1, .* nan"):
        Division((part_of("a"), part_of("a")), -1, float("nan"))
