"""Tars of text as webdataset writes them, and WARC files; whole and damaged."""

import io
import json
import sys
from pathlib import Path

import pytest
import webdataset
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import Document, iterate_documents
from esolm.data_prep.errors import DataError, MissingPackageError
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.sources import find_files
from tests.data_prep.corpus import make_job, run_job, text_of, write_jsonl

TEXTS = [text_of(number, 30) for number in range(9)]


def read(path: Path, policy: str = "error", **options: object) -> list[Document]:
    options_ = ReadOptions(**options)  # type: ignore[arg-type]
    return list(iterate_documents(find_files([path]), BadDocuments(policy), options_))


def write_tar(path: Path, texts: list[str] = TEXTS) -> Path:
    """By turns a text, an object, and both."""
    with webdataset.TarWriter(str(path)) as writer:
        for number, text in enumerate(texts):
            sample: dict[str, object] = {"__key__": f"page{number}"}
            if number % 3 != 1:
                sample["txt"] = text
            if number % 3 != 0:
                sample["json"] = {"text": text, "url": f"u{number}"}
            writer.write(sample)
    return path


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_samples_of_a_tar(tmp_path: Path, suffix: str) -> None:
    path = write_tar(tmp_path / f"texts{suffix}")
    found = read(path)
    assert [document.text for document in found] == TEXTS
    assert [document.id for document in found] == [f"page{number}" for number in range(9)]
    assert str(found[4].place) == f"{path}[page4]"
    assert [d.id for d in read(path, id_key="url")][:3] == ["page0", "u1", "u2"]


def test_every_damage_to_a_tar_is_found(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "texts.tar")
    content = path.read_bytes()
    for size in range(0, len(content) - 10240 + 1024, 512):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="damaged or cut short"):
            read(path)
    for place in (3, 512 * 2 + 5, content.index(b"page4") + 1):
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"damaged or cut short|Write the tar again"):
            read(path)


def test_samples_without_text_are_bad(tmp_path: Path, tokenizer_directory: Path) -> None:
    path = tmp_path / "mixed.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        writer.write({"__key__": "a", "txt": b"good"})
        writer.write({"__key__": "b", "jpg": b"\xff\xd8"})
        writer.write({"__key__": "c", "txt": b"\xff"})
        writer.write({"__key__": "d", "json": b"{"})
    assert [document.text for document in read(path, "skip")] == ["good"]
    with pytest.raises(DataError, match=r"mixed\.tar\[b\]: neither \.txt nor \.json"):
        read(path)
    with pytest.raises(DataError, match=r"texts\.tar\[page0\]: longer than 100 bytes .*--max-doc"):
        read(write_tar(tmp_path / "texts.tar"), most_bytes=100)
    # A tar of tokens is a webdataset tar as well.
    source = write_jsonl(tmp_path / "text.jsonl", 3)
    run_job(make_job(source, tokenizer_directory, tmp_path / "data"), tokenizer_directory)
    shard = next((tmp_path / "data" / "shards").glob("*.tar"))
    with pytest.raises(DataError, match="neither"):
        read(shard)


def test_a_long_member_is_passed_over_or_one_bad_document(tmp_path: Path) -> None:
    path = tmp_path / "mixed.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        writer.write({"__key__": "a", "txt": b"good", "jpg": bytes(5000)})
        writer.write({"__key__": "b", "txt": b"x" * 5000})
        writer.write({"__key__": "c", "json": b'{"text": "also"}', "en.txt": b"x" * 5000})
        writer.write({"__key__": "d", "txt": b"text", "json": b" " * 5000})
    bad = BadDocuments("skip")
    found = list(iterate_documents(find_files([path]), bad, ReadOptions(most_bytes=4999)))
    assert [(d.number, d.text) for d in found] == [(0, "good"), (2, "also")]
    assert bad.count == 2


HTML = """<html><head><title>Bridges</title></head><body><nav><a href="/">Home</a></nav>
<article><h1>Bridges</h1><p>{0}</p><p>{1}</p></article><footer>(c) 2020</footer></body></html>"""
PARAGRAPHS = (
    "The bridge of the old town was built in the year of the great flood by an unknown master.",
    "It has carried every cart and every car since then, and nobody remembers that it ever closed.",
)


def write_warc(path: Path, compressed: bool) -> Path:
    with open(path, "wb") as stream:
        writer = WARCWriter(stream, gzip=compressed)
        for name, kind, body in (
            ("a", "text/html; charset=utf-8", HTML.format(*PARAGRAPHS).encode()),
            ("b", "image/png", b"\x89PNG"),
            ("c", "text/plain", b"plain text"),
            ("d", "text/html", b"<html></html>"),
        ):
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.0")
            record = writer.create_warc_record(
                f"http://site.org/{name}", "response", io.BytesIO(body), http_headers=headers
            )
            writer.write_record(record)
        writer.write_record(
            writer.create_warc_record(
                *("http://site.org/e", "conversion"),
                payload=io.BytesIO(b"extracted before"),
                warc_content_type="text/plain",
            )
        )
    return path


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_pages_of_a_warc(tmp_path: Path, name: str) -> None:
    path = write_warc(tmp_path / name, name.endswith(".gz"))
    found = {document.id[-1]: document.text for document in read(path)}
    assert list(found) == ["a", "c", "d", "e"]
    for paragraph in PARAGRAPHS:
        assert paragraph in found["a"]
    assert "Home" not in found["a"]
    assert (found["c"], found["d"], found["e"]) == ("plain text", "", "extracted before")


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_a_cut_warc_is_found(tmp_path: Path, name: str) -> None:
    path = write_warc(tmp_path / name, name.endswith(".gz"))
    content = path.read_bytes()
    for size in (len(content) // 3, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="damaged or cut short"):
            read(path)
    path.write_bytes(b"no warc at all")
    with pytest.raises(DataError, match="damaged or cut short"):
        read(path)


def test_json_of_a_tar_is_read_as_that_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "texts.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        writer.write({"__key__": "a", "json": json.dumps({"body": "x"}).encode()})
    assert [d.text for d in read(path, text_key="body")] == ["x"]


def test_a_package_that_is_not_there_is_no_bad_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where bad pages are skipped: all of them would be."""
    path = write_warc(tmp_path / "crawl.warc", compressed=False)
    for package in ("trafilatura", "warcio.archiveiterator"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingPackageError, match=r"pip install 'esolm\[warc\]'"):
                read(path, "skip")
