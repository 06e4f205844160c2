"""What a file holds is known by its name, by its content where names mislead, or told."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.sources import find_files
from tests.data_prep.corpus import make_job, run_job

RECORDS = [{"text": "one"}, {"text": "two\nlines", "url": "u"}, {"text": "three"}]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
FORMS = {
    "lines": LINES,
    "lines after a blank one": "\n" + LINES,
    "a list": json.dumps(RECORDS),
    "a list over lines": json.dumps(RECORDS, indent=2),
}


def texts(path: Path, told: str = "auto", **options: Any) -> list[str]:
    files = find_files([path], told=told)
    return [d.text for d in iterate_documents(files, BadDocuments(**options))]


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["c4-train.00000-of-01024.json", "c4.json.gz"])
def test_json_is_told_from_json_lines_by_its_content(
    name: str, content: str, tmp_path: Path
) -> None:
    path, data = tmp_path / name, content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert texts(path) == [record["text"] for record in RECORDS]


def test_a_json_file_may_hold_one_object(tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"text": "alone", "id": 1}, indent=1))
    assert texts(path) == ["alone"]


@pytest.mark.parametrize("content", ['{"text": ', "[1, 2]", '{"words": "x"}', "plain text"])
def test_json_without_texts_is_a_bad_document(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"bad\.json"):
        texts(path)
    assert texts(path, policy="skip") == []


def test_a_damaged_first_line_costs_no_other(tmp_path: Path) -> None:
    """The file still holds lines, and is not one bad document."""
    path = tmp_path / "c4.json"
    path.write_text('{"text": \n' + LINES)
    with pytest.raises(DataError, match=r"c4\.json:1: invalid JSON"):
        texts(path)
    assert texts(path, policy="skip") == [record["text"] for record in RECORDS]


@pytest.mark.parametrize("first", ['{"text": "alone",', "{", '{"more": {"text": "no"},'])
def test_an_object_over_lines_is_not_taken_for_lines(first: str, tmp_path: Path) -> None:
    rest = '"text": "alone"\n}' if "alone" not in first else '"id": 1\n}'
    path = tmp_path / "page.json"
    path.write_text(f"{first}\n{rest}")
    assert texts(path) == ["alone"]


def test_names_that_say_nothing_are_refused_all_at_once_unless_told(tmp_path: Path) -> None:
    for name in ("part-00000", "_SUCCESS", "data.orc", "notes.txt"):
        (tmp_path / name).write_text(LINES)
    with pytest.raises(DataError, match="Their names do not say") as refused:
        texts(tmp_path)
    for name in ("part-00000", "_SUCCESS", "data.orc", "text (prep.format)"):
        assert name in str(refused.value)
    assert "notes.txt" not in str(refused.value)
    assert texts(tmp_path / "part-00000", told="text") == [LINES]
    assert texts(tmp_path / "part-00000", told="jsonl") == ["one", "two\nlines", "three"]
    with pytest.raises(DataError, match="--format is 'csv'; choose of auto, jsonl, json, parquet"):
        texts(tmp_path / "part-00000", told="csv")


def test_what_was_told_is_part_of_the_settings(tokenizer_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(LINES)
    job = make_job(path, tokenizer_directory, tmp_path / "data", valid_fraction=0.0)
    assert "formats" not in job.settings(), "older datasets do not state it"
    run_job(job, tokenizer_directory)
    files = tuple(find_files([path], told="jsonl"))
    told = type(job)(job.out, files, job.tokenizer, valid_fraction=0.0)
    with pytest.raises(DataError, match=r"formats: was None, now \['jsonl'\]"):
        run_job(told, tokenizer_directory)
