"""Records of a dataset against what a flipped bit does not show: other bytes, other names."""

import json
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from random import Random

import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import read_marker
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.merge import merge_tasks
from esolm.data_prep.verify import verify_dataset
from tests.data_prep.corpus import make_job, run_job, write_jsonl


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
