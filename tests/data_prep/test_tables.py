"""Parquet and Arrow: the texts of a column, whatever its type; rows and files that are damaged."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.known_formats import formats
from esolm.data_prep.sources import find_files
from tests.data_prep.corpus import text_of
from tests.processes import run_python

TEXTS = [text_of(number, 30) for number in range(97)]


def table(kind: Any = None) -> pa.Table:
    texts = pa.array(TEXTS)
    return pa.table({"id": range(97), "text": texts if kind is None else texts.cast(kind)})


def write_stream(one: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, ipc.new_stream(sink, one.schema) as stream:
        stream.write_table(one, max_chunksize=10)


WRITERS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "a.parquet": lambda one, path: pq.write_table(one, path, row_group_size=10),
    "b.parquet": lambda one, path: pq.write_table(one, path, compression="zstd"),
    "a.arrow": lambda one, path: feather.write_feather(one, path, "uncompressed"),
    "b.feather": lambda one, path: feather.write_feather(one, path, "lz4", chunksize=10),
    "c.arrow": write_stream,
}


def read(path: Path, policy: str = "error", **options: Any) -> list[tuple[str, str, str]]:
    documents = iterate_documents(find_files([path]), BadDocuments(policy), ReadOptions(**options))
    return [(str(d.place), d.id, d.text) for d in documents]


@pytest.mark.parametrize("kind", [None, pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("name", WRITERS)
def test_every_row_is_a_document(name: str, kind: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](table(kind), path)
    expected = [(f"{path}[{row}]", str(row), text) for row, text in enumerate(TEXTS)]
    assert read(path, id_key="id") == expected


def test_stretches_of_parquet_are_its_row_groups(tmp_path: Path) -> None:
    path, one = tmp_path / "a.parquet", formats()["parquet"]
    WRITERS[path.name](table(), path)
    assert one.can_be_cut(path)
    size = path.stat().st_size
    for cuts in ([0, size], [0, 5, size], [0, size // 3, size // 2, size - 1, size]):
        pieces = [
            piece
            for start, stop in pairwise(cuts)
            for piece in one.pieces_between(path, ReadOptions(), start, stop)
        ]
        assert [piece.read().text for piece in pieces] == TEXTS
        assert [piece.place.row for piece in pieces] == list(range(97))


@pytest.mark.parametrize("name", ["a.parquet", "c.arrow"])
def test_a_damaged_row_is_one_bad_document(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    values = pa.array([b"one", b"t\xffo", None, b"four"])
    WRITERS[name](pa.table({"text": values.view(pa.string())}), path)
    assert [text for _, _, text in read(path, "skip")] == ["one", "four"]
    with pytest.raises(DataError, match=r"\[1\]: invalid UTF-8 at byte 1 \(invalid start byte\)"):
        read(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_named_and_costs_no_other(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](table(), path)
    content = path.read_bytes()
    (tmp_path / "z.txt").write_text("whole")
    for damaged in (b"", b"PAR1", b"ARROW1", content[: len(content) // 2], content[:-9]):
        if name == "c.arrow" and damaged == content[:-9]:
            continue  # no more than the mark of the end of a stream
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path.name} is damaged or cut short"):
            read(path)
        assert read(tmp_path, "skip")[-1][2] == "whole"


def test_a_changed_byte_never_ends_the_program(tmp_path: Path) -> None:
    """It is found, or lies where it changes no more than texts: Parquet need not have checksums."""
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, compression="snappy", row_group_size=50)
    content = path.read_bytes()
    places = range(0, len(content), len(content) // 60)
    script = f"""
from pathlib import Path
from tests.data_prep.test_tables import read
path = Path({str(path)!r})
content = path.read_bytes()
for place in {list(places)}:
    changed = bytearray(content)
    changed[place] ^= 255
    path.write_bytes(changed)
    assert len(read(path, "skip")) <= 97
print("all read")
"""
    finished = run_python("-c", script)
    assert finished.stdout == "all read\n", finished.stderr


def test_columns_that_are_missing_or_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    WRITERS[path.name](table(), path)
    with pytest.raises(
        DataError, match=r"no column 'body' but id, text\. Choose another with --tex"
    ):
        read(path, text_key="body")
    with pytest.raises(DataError, match="'id' holds int64, not text"):
        read(path, text_key="id")
    with pytest.raises(DataError, match=r"no column 'url' .* --id-key"):
        read(path, id_key="url")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_large_table_takes_little_memory(name: str, tmp_path: Path) -> None:
    """One row group of 100 MB."""
    path = tmp_path / name
    texts = pa.array([text_of(n, 20_000) for n in range(8)])
    one = pa.table({"text": pa.chunked_array([texts] * 90)})
    if name.endswith("parquet"):
        pq.write_table(one, path, row_group_size=one.num_rows, use_dictionary=False)
    else:
        feather.write_feather(one, path, "zstd")
    script = f"""
import resource
from pathlib import Path
from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.sources import find_files
import pyarrow.parquet
files = find_files([{str(path)!r}])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(len(document.text) for document in iterate_documents(files, BadDocuments()))
print(size // 10**6, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    finished = run_python("-c", script)
    assert finished.returncode == 0, finished.stderr
    size, more = map(int, finished.stdout.split())
    assert size > 90
    assert more < 120, f"{more} MB for {size} MB"
