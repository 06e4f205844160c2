"""What is kept of each document beside the tokens: the fields that were asked for, no others."""

import datetime
import io
import json
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard
from typer.testing import CliRunner
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.jobs import is_finished
from esolm.data_prep.manifest import Manifest, read_manifest
from esolm.data_prep.metadata import metadata_lines
from esolm.data_prep.sources import find_files
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.data_prep.verify import verify_dataset
from esolm.pipeline.cli.prep import app
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.data.text_tars import texts_of
from tests.data_prep.corpus import make_job, run_job, text_of, write_jsonl


def write_pages(path: Path, count: int = 40) -> list[dict[str, Any]]:
    """JSON lines with fields of every kind, of which some documents lack one."""
    pages: list[dict[str, Any]] = []
    for number in range(count):
        page = {
            "text": text_of(number, 30),
            "id": f"page-{number}",
            "url": f"https://site.org/{number}/\u2028\U0001f600",
            "about": {"scores": [number / 3, None, True], "name": "\ud800"},
        }
        pages.append(page | ({"date": number} if number % 3 else {}))
    path.write_text("".join(json.dumps(page) + "\n" for page in pages), encoding="utf-8")
    return pages


def kept_of(data: Path, split: str, manifest: Manifest) -> list[dict[str, Any]]:
    """The lines of a split, read as another program would."""
    lines = []
    for shard in manifest.splits[split]:
        with open(data / shard.metadata_name, "rb") as stream:
            content = zstandard.ZstdDecompressor().stream_reader(stream).read()
        lines += [json.loads(line) for line in content.decode("ascii").splitlines()]
        assert len(content.splitlines()) == shard.num_documents
    return lines


@pytest.mark.parametrize("tasks", [1, 3])
def test_fields_id_and_place_of_every_document(
    tasks: int, tmp_path: Path, tokenizer_directory: Path
) -> None:
    source = tmp_path / "pages.jsonl"
    pages = {page["text"]: page for page in write_pages(source)}
    content = source.read_bytes()
    job = make_job(
        source, tokenizer_directory, tmp_path / "data", num_tasks=tasks, valid_fraction=0.2,
        shard_tokens=500, id_key="id", metadata=("url", "date?", "about"),
    )  # fmt: skip
    run_job(job, tokenizer_directory)
    manifest, tokenizer = read_manifest(job.out), load_tokenizer(tokenizer_directory)
    assert len(manifest.splits["train"]) > 3
    seen = 0
    for split in ("train", "valid"):
        texts = [text for text, _ in texts_of(TokenDataset(job.out, split), tokenizer)]
        for text, kept in zip(texts, kept_of(job.out, split, manifest), strict=True):
            page = pages[text]
            fields = {"url": page["url"], "date": page.get("date"), "about": page["about"]}
            assert kept["metadata"] == fields
            assert (kept["id"], kept["file"]) == (page["id"], "pages.jsonl")
            line = content[kept.get("from_byte", 0) :].splitlines()[kept["line"] - 1]
            assert json.loads(line) == page
            seen += 1
    assert seen == len(pages)
    assert any("from_byte" in kept for kept in kept_of(job.out, "train", manifest)) == (tasks > 1)


def test_a_dataset_without_is_as_it_was(tmp_path: Path, tokenizer_directory: Path) -> None:
    """Its records name no such file, and its fingerprint is that of the same tokens with one."""
    source = write_jsonl(tmp_path / "text.jsonl", 10)
    plain = make_job(source, tokenizer_directory, tmp_path / "plain")
    kept = replace(plain, out=tmp_path / "kept", metadata=(".",))
    for job in (plain, kept):
        run_job(job, tokenizer_directory)
    for path in (plain.out / "manifest.json", *plain.out.glob("*/*.json")):
        assert "metadata" not in path.read_text()
    assert "metadata" not in plain.settings()
    found = [read_manifest(job.out) for job in (plain, kept)]
    assert found[0].fingerprint == found[1].fingerprint
    assert [len(shard.files()) for shard in found[0].shards] == [3]
    assert [len(shard.files()) for shard in found[1].shards] == [4]
    assert kept_of(kept.out, "train", found[1])[3] == {
        "id": "", "file": "text.jsonl", "line": 4, "metadata": {},
    }  # fmt: skip
    with pytest.raises(DataError, match=r"metadata: was None, now \['\.'\]"):
        run_job(replace(kept, out=plain.out), tokenizer_directory)


def test_the_same_bytes_again(tmp_path: Path, tokenizer_directory: Path) -> None:
    write_pages(tmp_path / "pages.jsonl")
    found = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        source = shutil.copy(tmp_path / "pages.jsonl", folder)
        job = make_job(Path(source), tokenizer_directory, folder / "data", metadata=("url",))
        run_job(job, tokenizer_directory)
        found.append([shard.metadata_sha256 for shard in read_manifest(job.out).shards])
    assert found[0] == found[1] != [""]


def fields_of(path: Path, *names: str, policy: str = "error") -> list[dict[str, Any]]:
    options = ReadOptions(metadata=names)
    documents = iterate_documents(find_files([path]), BadDocuments(policy), options)
    return [dict(document.metadata) for document in documents]


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_columns_of_tables(name: str, tmp_path: Path) -> None:
    moment = np.datetime64("2024-02-29T12:30:00.123456789", "ns")
    columns = {
        "text": pa.array(["one", "two"]),
        "when": pa.array([moment, None]),
        "day": pa.array([datetime.date(2024, 2, 29)] * 2),
        "price": pa.array([Decimal("1.10"), None]),
        "score": pa.array([0.5, float("nan")]),
        "about": pa.array([{"names": ["x"], "raw": b"\xff"}, None]),
        "kind": pa.array(["p", "q"]).dictionary_encode(),
    }
    path = tmp_path / name
    (pq.write_table if name == "a.parquet" else feather.write_feather)(pa.table(columns), path)
    expected = {
        "when": "2024-02-29 12:30:00.123456789", "day": "2024-02-29", "price": "1.10",
        "score": 0.5, "about": {"names": ["x"], "raw": "ff"}, "kind": "p", "other": None,
    }  # fmt: skip
    asked = [*(key for key in expected if key != "other"), "other?"]
    empty = dict.fromkeys(expected) | {"day": "2024-02-29", "kind": "q"}
    assert fields_of(path, *asked) == [expected, empty]
    with pytest.raises(DataError, match=r"no column 'other' but .* with --metadata"):
        fields_of(path, "other")


def test_the_json_of_samples_of_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "a", "txt": "one", "json": {"url": "u1"}})
        writer.write({"__key__": "b", "json": {"text": "two", "url": "u2", "more": [1]}})
        writer.write({"__key__": "c", "txt": "three"})
    assert fields_of(path, "url?", "more?") == [
        {"url": "u1", "more": None}, {"url": "u2", "more": [1]}, {"url": None, "more": None},
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"a\.tar\[c\]: no field 'url' \(--metadata; 'url\?' takes"):
        fields_of(path, "url")
    assert fields_of(path, "more", policy="skip") == [{"more": [1]}]


def test_headers_of_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    with open(path, "wb") as stream:
        writer = WARCWriter(stream, gzip=False)
        headers = StatusAndHeaders(
            "200 OK", [("Content-Type", "text/plain"), ("Server", "x")], protocol="HTTP/1.0"
        )
        record = writer.create_warc_record(
            "http://site.org/a", "response", io.BytesIO(b"text"), http_headers=headers,
            warc_headers_dict={"WARC-Date": "2024-02-29T12:30:00Z"},
        )  # fmt: skip
        writer.write_record(record)
    assert fields_of(path, "warc-date", "WARC-Target-URI", "server", "ETag?") == [
        {"warc-date": "2024-02-29T12:30:00Z", "WARC-Target-URI": "http://site.org/a",
         "server": "x", "ETag": None},
    ]  # fmt: skip


def test_text_has_no_fields(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert fields_of(tmp_path / "a.txt", "url?") == [{"url": None}]
    with pytest.raises(DataError, match="no field 'url'"):
        fields_of(tmp_path / "a.txt", "url")


def test_a_field_that_is_nested_too_deeply_is_a_bad_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "deep": ' + "[" * 600 + "]" * 600 + "}\n")
    assert fields_of(path, policy="skip") == [{}]
    with pytest.raises(DataError, match="nested too deeply"):
        fields_of(path, "deep")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a,,b"], "a field without a name"),
        (["a", "b,a?"], "names a more than once"),
        (["?"], "a field without a name"),
    ],
)
def test_fields_that_cannot_be_kept(given: list[str], message: str, tmp_path: Path) -> None:
    from esolm.data_prep.metadata import metadata_keys, metadata_problems

    assert any(message in each for each in metadata_problems(metadata_keys(given)))


def test_a_missing_or_damaged_file_is_found(tmp_path: Path, tokenizer_directory: Path) -> None:
    source = write_jsonl(tmp_path / "text.jsonl", 10)
    job = make_job(source, tokenizer_directory, tmp_path / "data", metadata=(".",))
    run_job(job, tokenizer_directory)
    manifest = read_manifest(job.out)
    (shard,) = manifest.splits["train"]
    path = job.out / shard.metadata_name
    content = path.read_bytes()
    assert is_finished(job, 0)
    assert len(list(metadata_lines(job.out, shard))) == 10
    lines = zstandard.decompress(content, max_output_size=1 << 20)
    path.write_bytes(zstandard.compress(lines + b"{}\n"))
    with pytest.raises(DataError, match="holds 11 lines, not one for each of 10 documents"):
        list(metadata_lines(job.out, shard))
    path.write_bytes(content[:-9])
    assert not is_finished(job, 0)
    with pytest.raises(DataError, match=r"metadata\.jsonl\.zst: cut short"):
        verify_dataset(job.out, manifest, lambda num_bytes: None)
    with pytest.raises(DataError, match=r"metadata\.jsonl\.zst: .*Run `esolm prep verify"):
        list(metadata_lines(job.out, shard))
    path.unlink()
    with pytest.raises(DataError, match=r"metadata\.jsonl\.zst: missing or unreadable"):
        TokenDataset(job.out, "train")
    assert run_job(job, tokenizer_directory) == [0]
    assert path.read_bytes() == content


@pytest.mark.parametrize("packing", ["continuous", "wrapped", "best_fit"])
def test_inspect_names_the_documents_of_a_sample(
    packing: str, tmp_path: Path, tokenizer_directory: Path
) -> None:
    source = tmp_path / "pages.jsonl"
    pages = {page["id"]: page for page in write_pages(source)}
    data, seq_len = tmp_path / "data", 100
    options = ["--shard-tokens", "700", "--id-key", "id", "--metadata", "url,date?,about"]
    commands = [
        ["tokenize", source, "--tokenizer", tokenizer_directory, "--out", data, *options],
        ["merge", data],
        ["pack", data, "--seq-len", seq_len],
        ["inspect", data, "--sample", 5, "--seq-len", seq_len, "--packing", packing],
    ]
    for command in commands:
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exception is None, result.exception
    lines = [line for line in result.output.split("\n") if line.startswith("  document ")]
    dataset, tokenizer = TokenDataset(data, "train"), load_tokenizer(tokenizer_directory)
    reader = SampleReader(dataset, seq_len, 0, packing=packing)
    row = reader.read(np.array([5], dtype=np.int64))[0].tolist()
    documents = [
        [*tokenizer.encode(text), dataset.eos_id] for text, _ in texts_of(dataset, tokenizer)
    ]
    place = border = 1 if packing == "wrapped" else 0
    for line in lines:
        about, kept = line.split(": ", 1)
        tokens = documents[int(about.split(",")[0].split()[-1])]
        page = pages[json.loads(kept)["id"]]
        assert tokens == [*tokenizer.encode(page["text"]), dataset.eos_id]
        assert json.loads(kept)["metadata"] == {
            "url": page["url"], "date": page.get("date"), "about": page["about"],
        }  # fmt: skip
        start, last = (int(word) for word in about.split("tokens ")[1].split(",")[0].split(" to "))
        assert start == place
        place, part = last + 1, row[start : last + 1]
        assert any(tokens[at : at + len(part)] == part for at in range(len(tokens)))
        assert ("begun before" not in about) == (tokens[: len(part)] == part)
        assert ("goes on behind" not in about) == (tokens[-len(part) :] == part)
    assert place == seq_len - border
