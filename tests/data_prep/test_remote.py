"""Text at addresses, of real servers for FTP and HTTP on this machine."""

import gzip
import json
import socketserver
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.cleaning.stages import build_stages
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.sources import find_files, folders_of
from tests.data_prep.corpus import make_job, run_job, text_of
from tests.ftp import FtpServer

TEXTS = [text_of(number, 40) for number in range(20)]


def fill(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "a.jsonl").write_text("".join(lines[:5]))
    (folder / "deep" / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[5:10]).encode()))
    (folder / "deep" / "c.txt").write_text(TEXTS[10])


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FtpServer]:
    server = FtpServer(tmp_path_factory.mktemp("ftp") / "served")
    fill(server.folder)
    parquet.write_table(pyarrow.table({"text": TEXTS[11:]}), server.folder / "d.parquet")
    server.start()
    yield server
    server.stop()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class CutShort(BaseHTTPRequestHandler):
    """Promises a file and hangs up in its middle."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b'{"text": "one"}\n' * 50)

    def log_message(self, *_: object) -> None:
        pass


def serve(handler: object) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert isinstance(server, socketserver.BaseServer)
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("http")
    fill(folder)
    yield from serve(partial(Quiet, directory=folder))


@pytest.fixture(scope="module")
def cut_short() -> Iterator[str]:
    yield from serve(CutShort)


def texts(*inputs: str) -> list[str]:
    return [d.text for d in iterate_documents(find_files(inputs), BadDocuments())]


def test_a_dataset_of_an_ftp_server(
    ftp: FtpServer, tokenizer_directory: Path, tmp_path: Path
) -> None:
    assert texts(f"{ftp.url}/deep/b.jsonl.gz") == TEXTS[5:10]
    assert texts(f"{ftp.url}/deep/*.txt", f"{ftp.url}/**/*.jsonl") == [TEXTS[10], *TEXTS[:5]]
    both = [f"{ftp.url}/", ftp.folder]
    manifests = []
    for number, source in enumerate(both):
        out = tmp_path / str(number)
        job = make_job(source, tokenizer_directory, out, num_tasks=2)  # type: ignore[arg-type]
        run_job(job, tokenizer_directory)
        manifests.append(read_manifest(out))
        assert "s3cret" not in "".join(p.read_text() for p in out.rglob("*.json"))
    assert manifests[0].counts == manifests[1].counts
    assert manifests[0].counts["documents"] == 20
    (stage,) = build_stages((f"decontaminate={ftp.url}/deep/c.txt",))
    assert (
        stage.fingerprint
        == build_stages((f"decontaminate={ftp.folder}/deep/c.txt",))[0].fingerprint
    )


def test_an_http_server(http: str) -> None:
    assert texts(f"{http}/a.jsonl", f"{http}/deep/b.jsonl.gz") == TEXTS[:10]
    assert texts(f"{http}/deep/") == TEXTS[5:11]


def test_what_is_not_there_is_named(http: str, tmp_path: Path) -> None:
    (tmp_path / "files.list").write_text(f"{http}/no.txt\n")
    with pytest.raises(DataError, match=r"No such file or directory: .*gone\.jsonl, .*no\.txt"):
        find_files([f"{http}/gone.jsonl", f"@{tmp_path}/files.list"])
    with pytest.raises(DataError, match=r"foo://there/a\.txt cannot be opened"):
        find_files(["foo://there/a.txt"])
    assert folders_of([f"{http}/a.jsonl"]) == []


def test_a_connection_that_fails_is_no_bad_file(cut_short: str) -> None:
    files = find_files([f"{cut_short}/a.jsonl"])
    bad = BadDocuments("skip")
    with pytest.raises(EsolmError, match=r"a\.jsonl could not be read .*again") as caught:
        list(iterate_documents(files, bad))
    assert not isinstance(caught.value, DataError)
    assert bad.count == 0


def test_a_server_that_is_down_is_no_bad_file(tmp_path: Path) -> None:
    """Neither for its files, nor where they are looked for."""
    fill(tmp_path / "served")
    server = serve(partial(Quiet, directory=tmp_path / "served"))
    url = f"{next(server)}/a.jsonl"
    files, bad = find_files([url]), BadDocuments("skip")
    next(server, None)
    for read in (lambda: list(iterate_documents(files, bad)), lambda: find_files([url])):
        with pytest.raises(EsolmError, match=r"a\.jsonl could not be read .*again") as caught:
            read()
        assert not isinstance(caught.value, DataError)
    assert bad.count == 0
