"""What cannot be read is an error, or left out, counted and listed; it is never lost in silence."""

import dataclasses
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esolm.data_prep.bad_documents import BadDocuments, JsonLinesFile
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.files import temporary_path
from esolm.data_prep.heartbeat import beats_path
from esolm.data_prep.jobs import (
    TokenizeJob,
    check_bad,
    errors_path,
    is_finished,
    prepare_output,
)
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.merge import merge_tasks
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizing import run_task
from tests.data_prep.corpus import make_job, run_job, text_of, write_jsonl
from tests.processes import ROOT, environment


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three good documents, two bad ones and two files that are damaged."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    good = [json.dumps({"text": text_of(number)}).encode() for number in range(4)]
    (folder / "a.jsonl").write_bytes(b"\n".join([good[0], b'{"text": 3}', good[1], b"{", b""]))
    cut = gzip.compress(good[2] + b"\n" + good[3] * 9, mtime=0)
    (folder / "b.jsonl.gz").write_bytes(cut[: len(cut) - 400])
    (folder / "c.parquet").write_bytes(b"PAR1")
    return folder


def listed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def job_of(corpus: Path, tokenizer: Path, out: Path, **settings: object) -> TokenizeJob:
    return make_job(corpus, tokenizer, out, on_bad_document="skip", **settings)


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_they_are_listed_once_whatever_the_tasks(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, num_tasks: int
) -> None:
    job = job_of(corpus, tokenizer_directory, tmp_path / "data", num_tasks=num_tasks)
    run_job(job, tokenizer_directory)
    assert read_manifest(job.out).counts["bad"] == 4
    found = listed(job.out / "errors.jsonl")
    assert [(Path(one["file"]).name, one.get("line")) for one in found] == [
        *(("a.jsonl", 2), ("a.jsonl", 4), ("b.jsonl.gz", None), ("c.parquet", None))
    ]
    reasons = [one["reason"] for one in found]
    assert reasons[0] == "not an object whose 'text' is a string"
    assert "cut short" in reasons[2]
    assert "is damaged" in reasons[3]
    assert run_job(job, tokenizer_directory) == [], "a finished task stays one"
    next((job.out / "tasks").glob("*.errors.jsonl")).unlink()
    assert len(run_job(job, tokenizer_directory)) == 1
    assert listed(job.out / "errors.jsonl") == found


def test_more_than_max_bad_is_an_error(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    few = job_of(corpus, tokenizer_directory, tmp_path / "data", max_bad=1)
    with pytest.raises(DataError, match="2 documents and files are bad, more than --max-bad 1"):
        run_job(few, tokenizer_directory)
    assert not is_finished(few, 0)
    assert not list(few.out.rglob("*.tmp"))
    run_job(job_of(corpus, tokenizer_directory, tmp_path / "data", max_bad=4), tokenizer_directory)


def test_a_full_disk_leaves_nothing_of_a_list(mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=16k")
    (folder / "other").write_bytes(bytes(12 << 10))
    listing = JsonLinesFile(folder / "errors.jsonl")
    listing.write({"reason": "x" * 6000})
    with pytest.raises(OSError, match="No space left") as caught:
        listing.commit()
    listing.discard()
    assert caught.value.filename == str(listing.path)
    assert [path.name for path in folder.iterdir()] == ["other"]


def test_what_a_killed_task_left_is_removed_by_it_alone(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = job_of(corpus, tokenizer_directory, tmp_path / "data", num_tasks=2)
    prepare_output(job, tokenizer_directory, overwrite=False)
    for task in range(2):
        for path in (errors_path(job.out, task, 2), beats_path(job.out, "tokenize", task, 2)):
            temporary_path(path).touch()
    run_task(job, 0, lambda num_bytes: None)
    left = [path.name for path in (job.out / "tasks").glob("*.tmp")]
    assert len(left) == 2
    assert all("00001-of" in name for name in left)


def test_tasks_are_counted_together(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    job = job_of(corpus, tokenizer_directory, tmp_path / "data", num_tasks=3, max_bad=3)
    for task in range(3):
        if task == 0:
            (job.out / "tasks").mkdir(parents=True)
            (job.out / "shards").mkdir()
            shutil.copytree(tokenizer_directory, job.out / "tokenizer")
        run_task(job, task, lambda num_bytes: None)
    with pytest.raises(DataError, match="4 documents and files are bad, more than --max-bad 3"):
        check_bad(job)
    # Tasks of an array each see their own; so merge counts all, by the limit of the last command.
    prepare_output(job, tokenizer_directory, overwrite=False)
    with pytest.raises(DataError, match="4 documents and files are bad, more than --max-bad 3"):
        merge_tasks(job.out)
    assert not (job.out / "manifest.json").exists()
    more = dataclasses.replace(job, max_bad=4)
    assert run_job(more, tokenizer_directory) == [], "no task is done again"
    assert run_job(dataclasses.replace(job, max_bad=None), tokenizer_directory) == []


def test_a_repaired_corpus_leaves_no_list(tokenizer_directory: Path, tmp_path: Path) -> None:
    job = job_of(write_jsonl(tmp_path / "a.jsonl", 5), tokenizer_directory, tmp_path / "data")
    run_job(job, tokenizer_directory)
    assert not list(job.out.rglob("errors.jsonl"))


def test_a_file_without_the_right_to_read_it(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    for path in corpus.iterdir():
        path.chmod(0)
    (corpus / "d.txt").write_text(text_of(7))
    command = [sys.executable, "-m", "esolm", "prep", "tokenize", corpus]
    command += ["--tokenizer", tokenizer_directory, "--out", tmp_path / "data", "--tasks", 2]
    if os.geteuid() == 0:  # whom no permission stops
        lost = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", lost, "--inh-caps", lost, *command]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        words = [*map(str, command), *more]
        return subprocess.run(
            words, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False
        )

    refused = run()
    assert refused.returncode == 64, refused.stderr
    assert "a.jsonl cannot be read (Permission denied)" in refused.stderr
    skipped = run("--on-bad-document", "skip", "--overwrite")
    assert skipped.returncode == 0, skipped.stderr
    assert "1 documents" in skipped.stdout
    assert "3 bad" in skipped.stdout


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_machine_that_fails_is_no_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    """Left out, its documents would be lost, and those behind it have other numbers."""

    def fail(path: Path, at_random: bool = False) -> None:
        raise OSError(number, os.strerror(number), str(path))

    (tmp_path / name).write_text("{}\n")
    files, bad = find_files([tmp_path / name]), BadDocuments("skip")
    monkeypatch.setattr("esolm.data_prep.compression.open_bytes", fail)
    monkeypatch.setattr("esolm.data_prep.table_formats.open_bytes", fail)
    with pytest.raises(EsolmError, match=rf"{name} could not be read .*again") as caught:
        list(iterate_documents(files, bad))
    assert not isinstance(caught.value, DataError)
    assert bad.count == 0
