"""The records of a dataset: no changed byte passes, and those of format 1 are still read."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from random import Random

import pytest

from data_prep import records
from data_prep.errors import DataError
from data_prep.files import write_sealed
from data_prep.jobs import is_finished, read_marker, run_task
from data_prep.manifest import read_manifest, write_manifest
from data_prep.merge import merge_tasks
from data_prep.verify import verify_dataset
from pipeline.data.dataset import TokenDataset
from pipeline.data.reader import SampleReader
from tests.data_prep.corpus import make_job, run_job, write_jsonl

FORMAT_1 = Path(__file__).parents[1] / "data" / "dataset_format_1"


@pytest.fixture
def data(tokenizer_directory: Path, tmp_path: Path) -> Path:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", 60)
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", num_tasks=2, valid_fraction=0.2)
    run_job(job, tokenizer_directory)
    return job.out


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A dataset that an older version of this program wrote."""
    shutil.copytree(FORMAT_1, tmp_path / "old")
    records._note_unsealed.cache_clear()
    return tmp_path / "old"


def verify(data: Path) -> int:
    return verify_dataset(data, read_manifest(data), lambda num_bytes: None)


def sealed_files(data: Path) -> list[Path]:
    sidecars, markers = data.glob("shards/*.json"), data.glob("tasks/*.json")
    return sorted([data / "manifest.json", *sidecars, *markers])


def flips(content: bytes, random: Random) -> list[bytes]:
    """Every byte changed, each to a random other one."""
    changed = []
    for place, byte in enumerate(content):
        other = byte ^ random.randrange(1, 256)
        changed.append(content[:place] + bytes([other]) + content[place + 1 :])
    return changed


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


def test_no_changed_byte_of_a_record_passes(data: Path) -> None:
    """Also of blanks, which JSON does not care about."""
    random = Random(0)
    content = (data / "manifest.json").read_bytes()
    # A blank for another, which is still the same JSON.
    changed = [*random.sample(flips(content, random), 300), content.replace(b"\n ", b"\n\t", 1)]
    assert accepted(data / "manifest.json", changed, lambda: read_manifest(data)) == []
    for marker in data.glob("tasks/*.json"):
        names = json.loads(marker.read_bytes())["sidecars"].values()
        for path in [marker, *(data / name for of_split in names for name in of_split)]:
            changed = random.sample(flips(path.read_bytes(), random), 100)
            assert accepted(path, changed, lambda m=marker: read_marker(data, m)) == []
    assert read_manifest(data)


@pytest.mark.parametrize("use", [merge_tasks, verify])
def test_merge_and_verify_refuse_any_changed_record(
    data: Path, use: Callable[[Path], object]
) -> None:
    random = Random(1)
    for path in sealed_files(data):
        if use is merge_tasks and path.name == "manifest.json":
            continue  # which it writes anew
        changed = random.sample(flips(path.read_bytes(), random), 8)
        assert accepted(path, changed, lambda: use(data)) == []
    assert use(data)


def test_a_changed_record_of_a_task_has_it_redone(
    data: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = make_job(
        tmp_path / "corpus.jsonl", tokenizer_directory, data, num_tasks=2, valid_fraction=0.2
    )
    sidecar = data / "shards" / "train-00001-00000.json"
    content = sidecar.read_bytes()
    sidecar.write_bytes(content.replace(b'"num_documents": 2', b'"num_documents": 3'))
    assert sidecar.read_bytes() != content
    assert (is_finished(job, 0), is_finished(job, 1)) == (True, False)
    run_task(job, 1, lambda num_bytes: None)
    assert sidecar.read_bytes() == content


@pytest.mark.parametrize("field", ["num_tokens", "member_offset", "member_stride", "num_bytes"])
def test_an_edit_under_a_new_seal_is_refused(data: Path, field: str) -> None:
    """As by a program that knows how records are sealed."""
    manifest, sidecar = data / "manifest.json", data / "shards" / "train-00000-00000.json"
    for path, use in ((manifest, read_manifest), (sidecar, merge_tasks)):
        record = json.loads(path.read_bytes())
        shard = record["shard"] if path == sidecar else record["splits"]["train"][0]
        shard[field] += 512
        if field == "num_tokens" and path == manifest:
            record["num_tokens"]["train"] += 512
        write_sealed(path, {key: record[key] for key in record if key != "checksum"})
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


def test_records_of_another_file_are_refused(data: Path) -> None:
    """A file that is whole, under the name of another of its kind."""
    for folder in ("shards", "tasks"):
        for path, other in permutations(sorted((data / folder).glob("*.json")), 2):
            content = path.read_bytes()
            shutil.copy(other, path)
            for use in (merge_tasks, verify):
                with pytest.raises(DataError, match=r"another (task|shard)|other settings"):
                    use(data)
            path.write_bytes(content)
    assert verify(data)


def test_a_dataset_of_format_1_is_read_with_a_note(
    old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reader = SampleReader(TokenDataset(old, "train"), 64, seed=1)
    assert "was written in format 1, without checksums" in caplog.text
    assert str(old) in caplog.text
    assert reader.dataset.fingerprint.startswith("f05858959bc69a76")
    assert reader.dataset.num_tokens == 5112
    assert verify(old) == 4
    rows, state = reader.read(range(10)), reader.state(10)  # type: ignore[arg-type]
    # Merged anew it has a seal, and the checkpoint of a run on it is still accepted.
    merge_tasks(old)
    assert json.loads((old / "manifest.json").read_bytes())["format_version"] == 2
    again = SampleReader(TokenDataset(old, "train"), 64, seed=1)
    assert (again.read(range(10)) == rows).all()  # type: ignore[arg-type]
    assert again.dataset.fingerprint != reader.dataset.fingerprint
    again.check_state(state)


@pytest.mark.parametrize("use", [read_manifest, merge_tasks])
def test_figures_of_format_1_that_contradict_each_other_are_refused(
    old: Path, use: Callable[[Path], object]
) -> None:
    path = old / "manifest.json" if use is read_manifest else old / "shards/train-00000-00000.json"
    figures = {b'"num_tokens": 2570': b'"num_tokens": 9570', b": 512,": b": 513,", b"131584": b"1"}
    for before, after in figures.items():
        content = path.read_bytes()
        assert before in content
        assert accepted(path, [content.replace(before, after)], lambda: use(old)) == []
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(DataError, match="its own checksum differs"):
        use(old)


def test_a_sealed_record_is_not_taken_for_an_old_one(data: Path) -> None:
    path = data / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"format_version": 2', b'"format_version": 1'))
    with pytest.raises(DataError, match="its own checksum differs"):
        read_manifest(data)
