"""Tasks share a corpus by bytes: each document is read once, in order, by shares of equal size."""

import bz2
import json
from pathlib import Path
from random import Random

import pytest

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import Document, iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.lines import lines_between
from esolm.data_prep.slices import slice_of
from esolm.data_prep.sources import find_files


def write_corpus(folder: Path) -> list[str]:
    """A large file, small ones, an empty one, one that cannot be cut; and the texts."""
    random, texts = Random(0), []

    def lines(name: str, count: int) -> bytes:
        made = [name + "x" * random.randrange(200) for _ in range(count)]
        texts.extend(made)
        return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in made)

    (folder / "a.jsonl").write_bytes(lines("a", 400))
    (folder / "b.jsonl").write_bytes(b"")
    (folder / "c.jsonl.bz2").write_bytes(bz2.compress(lines("c", 30)))
    (folder / "d.json").write_bytes(lines("d", 50))
    (folder / "e.txt").write_text("e")
    texts.append("e")
    (folder / "f.ndjson").write_bytes(lines("f", 70).rstrip())
    return texts


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 7, 50, 1000])
def test_every_document_is_read_once_in_order(tmp_path: Path, num_tasks: int) -> None:
    texts = write_corpus(tmp_path)
    files = find_files([tmp_path])
    found: list[Document] = []
    for task in range(num_tasks):
        part = list(iterate_documents(slice_of(files, task, num_tasks), BadDocuments()))
        assert [document.number for document in part] == list(range(len(part)))
        found += part
    assert [document.text for document in found] == texts
    for document in found:
        place = document.place
        if place.file.endswith(("jsonl", "ndjson")):
            assert place.line is not None
            line = Path(place.file).read_text().splitlines()[place.line - 1]
            assert json.loads(line)["text"] == document.text


def test_shares_are_equal_in_bytes(tmp_path: Path) -> None:
    for name, count in (("a", 9000), ("b", 10), ("c", 700)):
        text = json.dumps({"text": name * 100}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(text * count)
    files = find_files([tmp_path])
    total = sum(file.num_bytes for file in files)
    for task in range(8):
        read = iterate_documents(slice_of(files, task, 8), BadDocuments())
        assert abs(sum(document.num_bytes for document in read) - total / 8) <= 2 * 115


@pytest.mark.parametrize("content", [b"a\nbb\n\nccc", b"\n\n", b"x" * 40, b"one\r\ntwo\r\n"])
def test_lines_at_every_cut(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    for cut in range(len(content) + 1):
        parts = [lines_between(path, 1000, *ends) for ends in ((0, cut), (cut, len(content)))]
        assert [line.content for part in parts for line in part] == content.splitlines(True)


def test_plain_lines_if_told(tmp_path: Path) -> None:
    path = tmp_path / "lm1b.txt"
    path.write_bytes(b"one\n\n two \r\nbad \xff\nthree")
    bad = BadDocuments("skip")
    documents = list(iterate_documents(find_files([path], told="lines"), bad))
    assert [document.text for document in documents] == ["one", " two ", "three"]
    assert bad.count == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.bz2", "a.txt", "a.json"])
def test_a_document_that_is_too_long_is_bad_and_never_held(tmp_path: Path, name: str) -> None:
    short, long = ({"text": "x" * count} for count in (50, 5000))
    content = f"{json.dumps(short)}\n{json.dumps(long)}\n{json.dumps(short)}\n".encode()
    path = tmp_path / name
    path.write_bytes(bz2.compress(content) if name.endswith("2") else content)
    files, options = find_files([path]), ReadOptions(most_bytes=1000)
    with pytest.raises(DataError, match=r"longer than 1,000 bytes .*--max-document-bytes"):
        list(iterate_documents(files, BadDocuments(), options))
    bad = BadDocuments("skip")
    found = [len(document.text) for document in iterate_documents(files, bad, options)]
    assert found == ([] if name == "a.txt" else [50, 50])
    assert bad.count == 1
