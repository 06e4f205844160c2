import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.sources import find_files

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
TEXTS = ["one\r\ntwo", "three \u00e9\n", "four\tfive", "six"]


def texts_of(path: Path, text_key: str = "text") -> list[str]:
    documents = iterate_documents(find_files([path]), BadDocuments(), ReadOptions(text_key))
    return [document.text for document in documents]


def jsonl(texts: list[str], key: str = "text") -> bytes:
    return b"".join(json.dumps({key: text}).encode() + b"\n" for text in texts)


def compress(content: bytes, suffix: str) -> bytes:
    return COMPRESSIONS[suffix](content)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_jsonl_and_text_in_every_compression(tmp_path: Path, suffix: str) -> None:
    lines = tmp_path / f"corpus.jsonl{suffix}"
    lines.write_bytes(compress(jsonl(TEXTS[:2]) + b"\n  \n" + jsonl(TEXTS[2:]), suffix))
    assert texts_of(lines) == TEXTS
    text = tmp_path / f"page.txt{suffix}"
    text.write_bytes(compress(TEXTS[0].encode(), suffix))
    assert texts_of(text) == TEXTS[:1]


def test_several_zstd_frames_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.zst"
    frames = [zstandard.compress(jsonl([text] * 50)) for text in TEXTS]
    path.write_bytes(b"".join(frames))
    assert texts_of(path) == [text for text in TEXTS for _ in range(50)]


@pytest.mark.timeout(15)
def test_a_zstd_file_is_read_in_linear_time(tmp_path: Path) -> None:
    text = "the same words again and again\n" * 1_500_000
    path = tmp_path / "page.txt.zst"
    path.write_bytes(zstandard.compress(text.encode()))
    assert texts_of(path) == [text]


@pytest.mark.parametrize("suffix", list(COMPRESSIONS)[1:])
def test_truncated_compressed_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.jsonl{suffix}"
    content = compress(jsonl([str(i) * 50 for i in range(500)]), suffix)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{path.name} is damaged or cut short"):
        texts_of(path)


def test_directories_are_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ["b/2.txt", "a.txt", "b/1.txt", ".hidden", ".git/x"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert texts_of(tmp_path) == ["a.txt", "b/1.txt", "b/2.txt"]


def test_links_are_followed_and_a_folder_is_read_once(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for path in [corpus / "b" / "1.txt", elsewhere / "2.txt", elsewhere / "deep" / "3.txt"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (corpus / "a").symlink_to(elsewhere)
    (corpus / "c").symlink_to(elsewhere)
    (corpus / "d.txt").symlink_to(corpus / "b" / "1.txt")
    (elsewhere / "circle").symlink_to(corpus)
    names = [source.name for source in find_files([corpus])]
    assert names == ["a/2.txt", "a/deep/3.txt", "b/1.txt", "d.txt"]


def test_what_is_no_readable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "dangling.txt"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"dangling\.txt cannot be read \(No such file"):
        find_files([tmp_path])
    link.unlink()
    os.mkfifo(tmp_path / "pipe")
    for inputs in ([tmp_path], [tmp_path / "pipe"]):
        with pytest.raises(DataError, match="pipe is no regular file"):
            find_files(inputs)
    (tmp_path / "pipe").unlink()
    # As root no folder is closed by its permissions.
    monkeypatch.setattr("os.scandir", lambda path: os.listdir(tmp_path / "closed"))
    with pytest.raises(DataError, match="closed cannot be read"):
        find_files([tmp_path])


BAD_LINES = {
    b'{"text": ': "invalid JSON",
    b'{"text": "\xff"}': "invalid Unicode",
    b'{"text": "\\ud800"}': "invalid Unicode",
    b'{"other": "x"}': "no key 'text'",
    b'{"text": 3}': "not an object whose 'text' is a string",
    b"[1]": "not an object",
    b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_is_named_or_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(jsonl(TEXTS[:1]) + line + b"\n" + jsonl(TEXTS[1:]))
    with pytest.raises(DataError, match=BAD_LINES[line]) as caught:
        texts_of(path)
    assert f"{path}:2" in str(caught.value)
    assert "--on-bad-document skip" in str(caught.value)
    bad = BadDocuments("skip")
    documents = list(iterate_documents(find_files([path]), bad))
    assert [(d.number, d.text) for d in documents] == list(zip([0, 2, 3, 4], TEXTS, strict=True))
    assert bad.count == 1


def test_invalid_utf8_text_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "page.txt"
    path.write_bytes(b"fine\nnot \xff fine")
    with pytest.raises(DataError, match=r"page\.txt:2: invalid UTF-8 at byte 9"):
        texts_of(path)


def test_another_text_key(tmp_path: Path) -> None:
    path = tmp_path / "corpus.ndjson"
    path.write_bytes(jsonl(TEXTS, "body"))
    assert texts_of(path, text_key="body") == TEXTS


def test_missing_inputs_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"first, .*second"):
        find_files([tmp_path / "first", tmp_path / "second"])
    with pytest.raises(DataError, match="--from-python-stdlib"):
        find_files([])
    with pytest.raises(DataError, match="'error' or 'skip'"):
        BadDocuments("ignore")


def test_python_stdlib_is_a_corpus() -> None:
    files = find_files([], from_python_stdlib=True)
    names = [source.name for source in files]
    assert "json/decoder.py" in names
    assert names == sorted(names)
    assert not any("site-packages" in name or name.startswith("test/") for name in names)
    first = next(iterate_documents(files[:3], BadDocuments()))
    assert first.text == files[0].path.read_bytes().decode()
