"""The settings of a job, by which a finished task is known."""

import dataclasses
from pathlib import Path

import pytest

from esolm.data_prep import jobs
from esolm.data_prep.comparing import choose_task, compare_task
from esolm.data_prep.errors import DataError
from esolm.data_prep.jobs import prepare_output
from esolm.data_prep.known_formats import format_of
from esolm.data_prep.tokenizing import run_task
from esolm.data_prep.workers import RunTask
from tests.data_prep.corpus import make_job, run_job, write_jsonl


def test_settings_are_made_once_whatever_the_tasks(
    tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(5):
        write_jsonl(folder / f"{number}.jsonl", 2, first=2 * number)
    job = make_job(folder, tokenizer_directory, tmp_path / "data", num_tasks=4, dedup="corpus")
    asked: list[Path] = []

    def ask(path: Path) -> str:
        asked.append(path)
        return format_of(path)

    monkeypatch.setattr(jobs, "format_of", ask)
    prepare_output(job, tokenizer_directory, overwrite=False)
    runs: list[RunTask] = [compare_task, choose_task, run_task]
    for run in runs:
        for task in range(4):
            run(job, task, lambda num_bytes: None)
    assert [path.name for path in asked] == [f"{number}.jsonl" for number in range(5)]
    job.settings()["inputs"] = "changed"
    assert job.settings()["inputs"] != "changed"


def test_another_id_key_is_refused(tokenizer_directory: Path, tmp_path: Path) -> None:
    """It decides which documents are bad."""
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "some text", "name": "a"}\n')
    job = make_job(source, tokenizer_directory, tmp_path / "data", id_key="name")
    assert run_job(job, tokenizer_directory) == [0]
    assert run_job(job, tokenizer_directory) == []
    with pytest.raises(DataError, match="id_key: was name, now None"):
        run_job(dataclasses.replace(job, id_key=""), tokenizer_directory)
    job = make_job(source, tokenizer_directory, tmp_path / "other")
    assert "id_key" not in job.settings(), "older datasets do not state it"
