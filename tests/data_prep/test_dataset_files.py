"""Shards, markers, merge and verify: the files that data preparation leaves behind."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import sha256_of_file, write_atomic
from esolm.data_prep.jobs import check_settings, is_finished, prepare_output
from esolm.data_prep.layout import token_dtype
from esolm.data_prep.manifest import Manifest, read_manifest
from esolm.data_prep.merge import merge_tasks
from esolm.data_prep.progress import ProgressBar
from esolm.data_prep.records import write_record
from esolm.data_prep.shards import ShardWriter, TokenTar
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.data_prep.tokenizing import run_task
from esolm.data_prep.verify import files_of, verify_dataset
from esolm.data_prep.workers import run_tasks
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, text_of, write_jsonl


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", 60)


def hashes(manifest: Manifest) -> list[tuple[str, int, str]]:
    return files_of(manifest)


def verify(data: Path) -> int:
    return verify_dataset(data, read_manifest(data), lambda num_bytes: None)


def webdataset_tokens(manifest: Manifest, data: Path, split: str) -> np.ndarray:
    paths = [str(data / shard.name) for shard in manifest.splits[split]]
    samples = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    return np.concatenate([np.frombuffer(sample["u16"], "<u2") for sample in samples])


def test_tokens_are_the_documents_in_order(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", valid_fraction=0.0)
    run_job(job, tokenizer_directory)
    tokenizer = load_tokenizer(tokenizer_directory)
    expected: list[int] = []
    ends = []
    for document in iterate_documents(job.files, BadDocuments()):
        expected += [*tokenizer.encode(document.text), tokenizer.info.eos_id]
        ends.append(len(expected))
    manifest = read_manifest(job.out)
    assert webdataset_tokens(manifest, job.out, "train").tolist() == expected
    [shard] = manifest.splits["train"]
    assert np.load(job.out / shard.ends_name).tolist() == ends
    assert (shard.num_tokens, shard.num_documents) == (len(expected), 60)


def test_two_runs_write_the_same_bytes_whatever_the_workers(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    settings = {"num_tasks": 3, "shard_tokens": 4000, "valid_fraction": 0.2}
    one = make_job(corpus, tokenizer_directory, tmp_path / "one", **settings)
    run_job(one, tokenizer_directory)
    two = make_job(corpus, tokenizer_directory, tmp_path / "two", **settings)
    prepare_output(two, tokenizer_directory, overwrite=False)
    with ProgressBar("tokenize", two.num_bytes, in_bytes=True) as progress:
        counts = run_tasks(two, range(3), 2, progress)
    merge_tasks(two.out)
    assert sum(count["documents"] for count in counts) == 60
    first, second = read_manifest(one.out), read_manifest(two.out)
    assert hashes(first) == hashes(second)
    assert first.fingerprint == second.fingerprint
    assert len(first.splits["train"]) > 3
    assert first.splits["valid"]


def test_finished_tasks_are_skipped_and_damaged_ones_redone(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", num_tasks=3)
    assert run_job(job, tokenizer_directory) == [0, 1, 2]
    before = read_manifest(job.out)
    assert run_job(job, tokenizer_directory) == []
    shard = job.out / "shards" / "train-00001-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert run_job(job, tokenizer_directory) == [1]
    (job.out / "shards" / "train-00002-00000.json").write_text("{")
    assert run_job(job, tokenizer_directory) == [2]
    assert hashes(read_manifest(job.out)) == hashes(before)


def test_changed_settings_are_detected(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    run_job(make_job(corpus, tokenizer_directory, tmp_path / "data"), tokenizer_directory)
    other = make_job(corpus, tokenizer_directory, tmp_path / "data", valid_fraction=0.5)
    with pytest.raises(DataError, match=r"valid_fraction: was 0\.01, now 0\.5.*--overwrite"):
        check_settings(other)
    write_jsonl(corpus, 61)
    grown = make_job(corpus, tokenizer_directory, tmp_path / "data")
    with pytest.raises(DataError, match="inputs: was"):
        check_settings(grown)
    prepare_output(grown, tokenizer_directory, overwrite=True)
    assert not is_finished(grown, 0)


def test_duplicates_and_empty_documents_are_dropped_and_counted(
    tokenizer_directory: Path, tmp_path: Path
) -> None:
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text("" if i == 5 else text_of(i % 3))
    job = make_job(tmp_path, tokenizer_directory, tmp_path / ".data")
    run_job(job, tokenizer_directory)
    counts = read_manifest(job.out).counts
    assert counts == {"documents": 3, "duplicates": 2, "empty": 1, "bad": 0}


def test_max_bytes_bounds_the_text(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", max_bytes=5000, num_tasks=2)
    run_job(job, tokenizer_directory)
    assert 0 < read_manifest(job.out).counts["documents"] < 10


def test_a_failed_task_leaves_no_shard(tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": text_of(0)}) + "\n{\n")
    job = make_job(corpus, tokenizer_directory, tmp_path / "data")
    prepare_output(job, tokenizer_directory, overwrite=False)
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: invalid JSON"):
        run_task(job, 0, lambda num_bytes: None)
    assert list((job.out / "shards").iterdir()) == []
    assert not is_finished(job, 0)


def test_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As array tasks on two machines do, under process ids that may be the same."""
    path, replace, others = tmp_path / "tokenizer.model", os.replace, [b"other"]

    def meanwhile(source: Path, target: Path) -> None:
        if others:
            write_atomic(path, others.pop())
        replace(source, target)

    monkeypatch.setattr("os.replace", meanwhile)
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    one, two = (TokenTar(tmp_path / "shard.tar", "<u2") for _ in range(2))
    for tar, token in ((one, 1), (two, 2)):
        tar.append(np.full(200_000, token, dtype="<u2"))
    digest = one.commit()
    two.discard()
    assert sha256_of_file(one.path) == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard.tar", "tokenizer.model"]


def test_of_two_processes_with_one_task_the_last_goes_on(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data")
    prepare_output(job, tokenizer_directory, overwrite=False)
    others = [lambda: run_task(job, 0, lambda num_bytes: None)]
    documents_before = iter(range(30))

    def meanwhile(num_bytes: int) -> None:
        if next(documents_before, None) is None and others:
            others.pop()()

    with pytest.raises(DataError, match="another process does the same task"):
        run_task(job, 0, meanwhile)
    merge_tasks(job.out)
    assert verify(job.out)
    assert not list((job.out / "shards").glob("*.tmp"))


def test_a_task_takes_no_tokenizer_but_its_own(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    """Two commands with different tokenizers were started on one dataset."""
    job = make_job(corpus, tokenizer_directory, tmp_path / "data")
    prepare_output(job, tokenizer_directory, overwrite=False)
    other = make_tokenizer(tmp_path / "other", 410)
    prepare_output(make_job(corpus, other, job.out), other, overwrite=False)
    with pytest.raises(DataError, match="was replaced by another tokenizer"):
        run_task(job, 0, lambda num_bytes: None)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    assert (token_dtype(65_536), token_dtype(65_537)) == ("<u2", "<u4")
    (tmp_path / "shards").mkdir()
    tokens = np.arange(70_000, dtype=np.int64)
    writer = ShardWriter(tmp_path, "train", 0, "<u4", 1 << 40, "")
    writer.add([tokens.tolist()])
    writer.close()
    paths = [str(tmp_path / writer.shards[0].name)]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [len(sample["u32"]) // 4 for sample in samples] == [65_536, 70_000 - 65_536]
    read = np.concatenate([np.frombuffer(sample["u32"], "<u4") for sample in samples])
    assert (read == tokens).all()


def test_merge_lists_the_missing_tasks(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has no finished task"):
        merge_tasks(tmp_path / "nothing")
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", num_tasks=4)
    prepare_output(job, tokenizer_directory, overwrite=False)
    run_task(job, 2, lambda num_bytes: None)
    with pytest.raises(DataError, match=r"3 of 4 tasks are not finished: 0, 1, 3"):
        merge_tasks(job.out)
    assert not (job.out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda b: b[:-700], "cut short"),
        (lambda b: b + b"\0", "too long"),
        (lambda b: b[:600] + bytes([b[600] ^ 1]) + b[601:], "changed, sha256"),
        (lambda b: b[:3] + bytes([b[3] ^ 1]) + b[4:], "changed, sha256"),
    ],
)
def test_verify_names_the_damage(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, damage: object, found: str
) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", num_tasks=2)
    run_job(job, tokenizer_directory)
    assert verify(job.out) >= 4
    shard = job.out / "shards" / "train-00001-00000.tar"
    shard.write_bytes(damage(shard.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=found) as caught:
        verify(job.out)
    assert str(shard) in str(caught.value)
    assert caught.value.exit_code == 64
    assert "esolm prep tokenize" in str(caught.value)


def test_verify_names_every_missing_file_and_a_changed_tokenizer(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data", num_tasks=2)
    run_job(job, tokenizer_directory)
    for task in range(2):
        (job.out / "shards" / f"train-0000{task}-00000.tar").unlink()
    (job.out / "tokenizer" / "tokenizer.model").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-00000-00000\.tar: missing") as caught:
        verify(job.out)
    assert "train-00001-00000.tar: missing" in str(caught.value)
    assert "tokenizer.model" in str(caught.value)


@pytest.mark.parametrize("field", ["name", "ends_name", "crc_name"])
@pytest.mark.parametrize("start", ["/", "shards/../../"])
def test_no_shard_lies_outside_the_dataset(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, field: str, start: str
) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data")
    run_job(job, tokenizer_directory)
    manifest, sidecar = job.out / "manifest.json", job.out / "shards" / "train-00000-00000.json"
    for path, read in ((manifest, read_manifest), (sidecar, merge_tasks)):
        record = json.loads(path.read_text())
        shard = record["shard"] if path == sidecar else record["splits"]["train"][0]
        shard[field] = start + shard[field]
        del record["checksum"]
        write_record(path, record)
        with pytest.raises(DataError, match=f"{path.name} names {start}.*outside the dataset"):
            read(job.out)


def test_a_changed_manifest_is_refused(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = make_job(corpus, tokenizer_directory, tmp_path / "data")
    run_job(job, tokenizer_directory)
    path = job.out / "manifest.json"
    record = json.loads(path.read_text())
    record["splits"]["train"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="changed by hand or damaged"):
        read_manifest(job.out)
    path.write_text(json.dumps({**record, "format_version": 99}))
    with pytest.raises(DataError, match="format version 99"):
        read_manifest(job.out)
    path.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_manifest(job.out)
