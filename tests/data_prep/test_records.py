"""Records of a dataset against what a flipped bit does not show: other bytes, other names."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from random import Random

import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import read_marker
from esolm.data_prep.manifest import read_manifest, write_manifest
from esolm.data_prep.merge import merge_tasks
from esolm.data_prep.records import write_record
from esolm.data_prep.verify import verify_dataset
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.reader import SampleReader
from tests.data_prep.corpus import make_job, run_job, write_jsonl

FORMAT_1 = Path(__file__).parents[1] / "data" / "dataset_format_1"


@pytest.fixture
def data(tokenizer_directory: Path, tmp_path: Path) -> Path:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", 60)
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", num_tasks=2, valid_fraction=0.2)
    run_job(job, tokenizer_directory)
    return job.out


def verify(data: Path) -> int:
    return verify_dataset(data, read_manifest(data), lambda num_bytes: None)


def flips(content: bytes, random: Random, count: int) -> list[bytes]:
    """Contents of which one byte is another, whichever: also a blank for another blank."""
    changed = []
    for place in random.sample(range(len(content)), count):
        other = content[place] ^ random.randrange(1, 256)
        changed.append(content[:place] + bytes([other]) + content[place + 1 :])
    return [*changed, content.replace(b"\n ", b"\n\t", 1)]


def accepted(path: Path, changed: list[bytes], use: Callable[[], object]) -> list[bytes]:
    """Those contents of a file with which `use` does not refuse the dataset."""
    content = path.read_bytes()
    passed = [each for each in changed if not refused(path, each, use)]
    path.write_bytes(content)
    return passed


def refused(path: Path, content: bytes, use: Callable[[], object]) -> bool:
    path.write_bytes(content)
    try:
        use()
    except DataError:
        return True
    return False


def test_no_byte_of_a_record_may_be_another(data: Path) -> None:
    """Also those that JSON does not care about."""
    random, manifest = Random(0), data / "manifest.json"
    changed = flips(manifest.read_bytes(), random, 400)
    assert accepted(manifest, changed, lambda: read_manifest(data)) == []
    for marker in data.glob("tasks/*.json"):
        names = json.loads(marker.read_bytes())["sidecars"].values()
        for path in [marker, *(data / name for of_split in names for name in of_split)]:
            changed = flips(path.read_bytes(), random, 100)
            assert accepted(path, changed, lambda m=marker: read_marker(data, m)) == []


@pytest.mark.parametrize("use", [merge_tasks, verify])
def test_merge_and_verify_refuse_any_changed_record(
    data: Path, use: Callable[[Path], object]
) -> None:
    random, records = Random(1), [*data.glob("shards/*.json"), *data.glob("tasks/*.json")]
    for path in records if use is merge_tasks else [*records, data / "manifest.json"]:
        changed = flips(path.read_bytes(), random, 8)
        assert accepted(path, changed, lambda: use(data)) == []
    assert use(data)


def test_records_of_another_file_are_refused(data: Path) -> None:
    """A file that is whole, under the name of another of its kind; also two that changed names."""
    for folder in ("shards", "tasks"):
        for path, other in permutations(sorted((data / folder).glob("*.json")), 2):
            content, others = path.read_bytes(), other.read_bytes()
            for left in (others, content):  # copied over it, and exchanged with it
                path.write_bytes(others)
                other.write_bytes(left)
                for use in (merge_tasks, verify):
                    with pytest.raises(DataError, match=r"another (task|shard)|other settings"):
                        use(data)
            path.write_bytes(content)
            other.write_bytes(others)
    assert verify(data)


def test_a_manifest_of_other_tasks_is_named(data: Path) -> None:
    """The shards of a task were made anew from other text, and not merged."""
    manifest = data / "manifest.json"
    before = manifest.read_bytes()
    source = data.parent / "corpus.jsonl"
    write_jsonl(source, 59)
    shutil.rmtree(data / "tasks")
    job = make_job(source, data / "tokenizer", data, num_tasks=2, valid_fraction=0.2)
    run_job(job, data / "tokenizer")
    assert verify(data)
    manifest.write_bytes(before)
    with pytest.raises(DataError, match="the manifest was not made from its shards/train-00001"):
        verify(data)


def test_a_dataset_without_the_records_of_its_tasks_is_whole(data: Path) -> None:
    shutil.rmtree(data / "tasks")
    for sidecar in data.glob("shards/*.json"):
        sidecar.unlink()
    assert verify(data)


@pytest.mark.parametrize("field", ["num_tokens", "member_offset", "member_stride", "num_bytes"])
def test_figures_under_a_new_seal_must_still_fit(data: Path, field: str) -> None:
    """As of a program that knows how records are sealed."""
    manifest, sidecar = data / "manifest.json", data / "shards" / "train-00000-00000.json"
    for path, use in ((manifest, read_manifest), (sidecar, merge_tasks)):
        record = json.loads(path.read_bytes())
        shard = record["shard"] if path == sidecar else record["splits"]["train"][0]
        shard[field] += 512
        if field == "num_tokens" and path == manifest:
            record["num_tokens"]["train"] += 512
        write_record(path, {key: record[key] for key in record if key != "checksum"})
        with pytest.raises(DataError, match=r"contradicts itself|stated"):
            use(data)


def test_a_resume_sees_another_number_of_tokens(data: Path) -> None:
    """One token less leaves the tar as large as it was."""
    state = SampleReader(TokenDataset(data, "train"), 64, seed=1).state(0)
    manifest = read_manifest(data)
    first, *others = manifest.splits["train"]
    fewer = [replace(first, num_tokens=first.num_tokens - 1), *others]
    write_manifest(data, replace(manifest, splits={**manifest.splits, "train": fewer}))
    reader = SampleReader(TokenDataset(data, "train"), 64, seed=1)
    with pytest.raises(DataError, match="dataset_fingerprint"):
        reader.check_state(state)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A dataset that the version of format 1 wrote."""
    return Path(shutil.copytree(FORMAT_1, tmp_path / "old"))


def test_a_checkpoint_of_format_1_goes_on_when_it_is_merged_anew(
    old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = SampleReader(TokenDataset(old, "train"), 64, seed=1)
    assert "is of format 1" in caplog.text
    assert reader.dataset.fingerprint.startswith("f05858959bc69a76"), "as it always was"
    assert reader.dataset.num_tokens == 5112
    assert verify(old) == 4
    rows, state = reader.read(np.arange(10)), reader.state(10)
    merge_tasks(old)
    assert json.loads((old / "manifest.json").read_bytes())["format_version"] == 2
    again = SampleReader(TokenDataset(old, "train"), 64, seed=1)
    assert (again.read(np.arange(10)) == rows).all()
    assert again.dataset.fingerprint != reader.dataset.fingerprint
    again.check_state(state)
    assert verify(old) == 4


@pytest.mark.parametrize("use", [read_manifest, merge_tasks])
def test_figures_of_format_1_must_fit(old: Path, use: Callable[[Path], object]) -> None:
    path = old / "manifest.json" if use is read_manifest else old / "shards/train-00000-00000.json"
    figures = {b'"num_tokens": 2570': b'"num_tokens": 9570', b": 512,": b": 510,", b"131584": b"1"}
    for before, after in figures.items():
        content = path.read_bytes()
        assert before in content
        assert accepted(path, [content.replace(before, after)], lambda: use(old)) == []


def test_no_changed_bit_of_format_1_is_read_as_other_tokens(old: Path) -> None:
    random, manifest = Random(0), old / "manifest.json"
    content, expected = manifest.read_bytes(), TokenDataset(old, "train").read(0, 5112)
    for place in random.sample(range(len(content)), 300):
        changed = bytearray(content)
        changed[place] ^= 1 << random.randrange(8)
        manifest.write_bytes(changed)
        try:
            data = TokenDataset(old, "train")
        except DataError:
            continue
        assert (data.read(0, data.num_tokens) == expected).all(), bytes(changed)[place - 20 : place]
