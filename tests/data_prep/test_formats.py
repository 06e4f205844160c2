"""What files hold: by their names, by their content, as they are told, and formats of others."""

import gzip
import json
from pathlib import Path

import pytest

from data_prep import formats
from data_prep.documents import BadDocuments, find_files, iterate_documents
from data_prep.errors import DataError
from data_prep.jobs import check_settings, prepare_output, run_task
from tests.data_prep.corpus import make_job, text_of, write_jsonl
from tests.examples import source_of_example
from tests.processes import run_python

TABLE = """id,text
1,"The first, with a comma."
2,"A second one
over two lines."
3,Third.
"""


def test_an_installed_format_is_taken(tmp_path: Path, tokenizer_directory: Path) -> None:
    package = tmp_path / "package"
    about = package / "comma_separated-1.0.dist-info"
    about.mkdir(parents=True)
    (package / "comma_separated.py").write_text(source_of_example(formats))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: comma-separated\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{formats.GROUP}]\ncsv = comma_separated:FORMAT\n")
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "other.csv").write_text("id,words\n1,x\n")

    def tokenize(name: str, *options: str) -> str:
        command = [
            "prep",
            "tokenize",
            str(tmp_path / name),
            "--out",
            str(tmp_path / f"{name}.data"),
        ]
        command += ["--tokenizer", str(tokenizer_directory), "--valid-fraction", "0"]
        finished = run_python("-m", "pipeline", *command, *options, packages=(package,))
        return f"{finished.returncode} {finished.stdout} {finished.stderr}"

    assert "3 documents" in tokenize("table.csv")
    assert "other.csv:2: no column 'text'" in tokenize("other.csv")
    assert "1 documents" in tokenize("other.csv", "--text-key", "words")


TEXTS = ["first\nof all", "\u00e9", "third"]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
RECORDS = [{"text": text} for text in TEXTS]


def texts_of(path: Path, **options: object) -> list[str]:
    documents = iterate_documents(find_files([path]), BadDocuments(), **options)  # type: ignore[arg-type]
    return [document.text for document in documents]


@pytest.mark.parametrize("name", ["c4-train.00000-of-01024.json", "c4-validation.json.gz"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LINES, TEXTS),
        ("\n  \n" + LINES, TEXTS),
        (LINES.splitlines()[0], TEXTS[:1]),
        (json.dumps(RECORDS), TEXTS),
        (json.dumps(RECORDS, indent=1), TEXTS),
        ("[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]", TEXTS),
        (json.dumps({"text": TEXTS[0], "more": {"text": 3}}, indent=1), TEXTS[:1]),
        ("[]", []),
    ],
)
def test_json_is_what_it_holds(
    tmp_path: Path, name: str, content: str, expected: list[str]
) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        ('{"text": \n' + LINES, ":1", "invalid JSON"),
        (LINES + "{\n", ":4", "invalid JSON"),
        ('[{"text": "a"}, {"text": 3}]', "[1]", "not an object whose 'text' is a string"),
        ('{\n "body": "x"\n}', "", "no key 'text'"),
        ('{\n "body": "x"\n', "", "invalid JSON"),
        ('"text"', "", "not an object"),
        ("", "", "invalid JSON"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, content: str, place: str, problem: str) -> None:
    path = tmp_path / "corpus.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        texts_of(path)
    assert str(caught.value).startswith(f"{path}{place}: {problem}")


def test_a_damaged_first_line_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text("{damaged\n" + LINES)
    bad = BadDocuments("skip")
    assert [d.text for d in iterate_documents(find_files([path]), bad)] == TEXTS
    assert bad.count == 1


def test_unknown_names_are_refused_unless_told(tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("a.parquet", "b.en-00001-of-00100", "c.csv.gz"):
        content = LINES.encode()
        (corpus / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (corpus / "README").write_text("known\n")
    with pytest.raises(DataError) as caught:
        make_job(corpus, tokenizer_directory, tmp_path / "data")
    message = str(caught.value)
    for path in corpus.iterdir():
        assert (str(path) in message) == (path.name != "README"), "each is named, and no other"
    assert "--format text or --format jsonl (prep.format)" in message
    with pytest.raises(DataError, match=r"a\.parquet"):
        texts_of(corpus)
    (corpus / "README").unlink()
    assert texts_of(corpus, chosen_format="jsonl") == TEXTS * 3
    assert texts_of(corpus, chosen_format="text") == [LINES] * 3
    with pytest.raises(DataError, match="--format is 'csv'; give auto, text or jsonl"):
        texts_of(corpus, chosen_format="csv")


def test_many_unknown_names_are_counted(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"{i}.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"4\.bin and 4 more"):
        texts_of(tmp_path)


def test_another_format_is_another_dataset(tokenizer_directory: Path, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", 8)
    job = make_job(corpus, tokenizer_directory, tmp_path / "data")
    assert not {"format", "json"} & set(job.settings()), "older tasks have neither"
    prepare_output(job, tokenizer_directory, overwrite=False)
    run_task(job, 0, lambda num_bytes: None)
    check_settings(job)
    told = make_job(corpus, tokenizer_directory, job.out, format="text")
    with pytest.raises(DataError, match="format: was None, now text"):
        check_settings(told)
    prepare_output(told, tokenizer_directory, overwrite=True)
    run_task(told, 0, lambda num_bytes: None)
    with pytest.raises(DataError, match="format: was text, now None"):
        check_settings(job)


def test_what_json_became_before_is_not_gone_on_with(
    tokenizer_directory: Path, tmp_path: Path
) -> None:
    """Before content was looked at, a .json file was one document: its tasks do not mix."""
    (tmp_path / "corpus.json").write_text(json.dumps({"text": text_of(1)}) + "\n")
    job = make_job(tmp_path / "corpus.json", tokenizer_directory, tmp_path / "data")
    assert job.settings()["json"] == "by content"
