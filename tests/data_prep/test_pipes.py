"""Outputs of commands as input: whole ones, ones that fail, and commands that are not run."""

import gzip
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import Document, iterate_documents
from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.formats import ReadOptions
from esolm.data_prep.jobs import TokenizeJob
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.slices import slice_of
from esolm.data_prep.sources import absolute, find_files, folders_of
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.cli.prep import app
from tests.data_prep.corpus import run_job
from tests.data_prep.test_archives import TEXTS, write_tar


def read(given: str, policy: str = "error", bad: BadDocuments | None = None) -> list[Document]:
    files = find_files([given], commands=True)
    return list(iterate_documents(files, bad or BadDocuments(policy), ReadOptions()))


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "some texts.tar")


def piped(tar: Path, more: str = "") -> str:
    return f"pipe:cat {shlex.quote(str(tar))}{more}"


@pytest.mark.parametrize("more", ["", " | gzip", " | xz", " | bzip2", " | dd bs=1 status=none"])
def test_the_output_is_read_as_the_file_is(more: str, tar: Path) -> None:
    found = read(piped(tar, more))
    assert [document.text for document in found] == TEXTS
    assert [document.id for document in found] == [document.id for document in read(str(tar))]
    assert str(found[4].place) == f"{piped(tar, more)}[page4]"


def test_a_dataset_of_commands_is_that_of_the_files(
    tmp_path: Path, tokenizer_directory: Path
) -> None:
    tars = [write_tar(tmp_path / f"{i}.tar", TEXTS[3 * i : 3 * i + 3]) for i in range(3)]
    given = f"pipe:cat {tmp_path}/{{0..2}}.tar"
    sources = find_files([given], commands=True)
    assert [source.name for source in sources] == [piped(path) for path in tars]
    tokenizer = load_tokenizer(tokenizer_directory).info
    job = TokenizeJob(tmp_path / "piped", tuple(sources), tokenizer, num_tasks=2)
    run_job(job, tokenizer_directory)
    (tmp_path / "files.list").write_text("0.tar\n1.tar\n2.tar\n")
    expected = TokenizeJob(
        tmp_path / "files", tuple(find_files([f"@{tmp_path / 'files.list'}"])), tokenizer, 1
    )
    run_job(expected, tokenizer_directory)
    counts = [read_manifest(each.out).counts for each in (job, expected)]
    assert counts[0] == counts[1]
    assert run_job(job, tokenizer_directory) == []
    # Its fingerprint is its text.
    others = find_files([given.replace("cat", "cat ")], commands=True)
    with pytest.raises(DataError, match="inputs: was"):
        run_job(TokenizeJob(job.out, tuple(others), tokenizer, num_tasks=2), tokenizer_directory)


def test_every_command_falls_to_one_task_as_a_whole(tmp_path: Path) -> None:
    sources = find_files(["pipe:true {0..9}"], commands=True)
    shares = [slice_of(sources, task, 4) for task in range(4)]
    assert [s.source for share in shares for s in share] == sources
    assert all(stretch.is_whole for share in shares for stretch in share)
    assert sorted(len(share) for share in shares) == [2, 2, 3, 3]


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("{cat}; exit 3", r"failed with exit code 3 after 30,720 bytes\. Run that command by"),
        ("{cat}; exit 141", "failed with exit code 141 after"),
        ("head -c 3000 {tar}; exit 1", "failed with exit code 1 after 3,000 bytes"),
        ("{cat} | gzip | head -c 300; exit 1", "failed with exit code 1 after 300 bytes"),
        ("echo not a tar; exit 2", "failed with exit code 2 after 10 bytes"),
        ("{cat}; kill -9 $$", "was killed by SIGKILL after"),
        ("no-such-program 2>/dev/null", "failed with exit code 127 after 0 bytes"),
    ],
)
def test_a_command_that_fails_is_one_error(
    command: str, message: str, policy: str, tar: Path
) -> None:
    """Whatever of the tar came before, and whatever is to be done about bad files."""
    quoted = shlex.quote(str(tar))
    given = "pipe:" + command.format(cat=f"cat {quoted}", tar=quoted)
    with pytest.raises(EsolmError, match=message) as caught:
        read(given, policy)
    assert not isinstance(caught.value, DataError)
    assert str(caught.value).startswith(given)


def test_an_output_that_is_cut_short_is_never_a_shorter_tar(tar: Path) -> None:
    """In a pipe of the shell the exit code is the last command's."""
    end = len(tar.read_bytes().rstrip(b"\0"))
    for first, last in pairwise([*range(0, end, 5000), end]):
        for size in {first, (first + last) // 2, last // 512 * 512}:
            with pytest.raises(DataError, match="damaged or cut short"):
                read(piped(tar, f" | head -c {size}"))
    bad = BadDocuments("skip")
    texts = [document.text for document in read(piped(tar, f" | head -c {end // 2}"), bad=bad)]
    assert 0 < len(texts) < len(TEXTS)
    assert texts == TEXTS[: len(texts)]
    assert bad.count == 1
    packed = tar.with_suffix(".tar.gz")
    packed.write_bytes(gzip.compress(tar.read_bytes())[:-40])
    with pytest.raises(DataError, match="damaged or cut short"):
        read(f"pipe:cat {shlex.quote(str(packed))}")


@pytest.mark.timeout(100)
def test_a_reader_that_has_enough_ends_the_command(tar: Path, tokenizer_directory: Path) -> None:
    given = piped(tar, "; exec sleep 500")
    files = tuple(find_files([given], commands=True))
    tokenizer = load_tokenizer(tokenizer_directory).info
    job = TokenizeJob(tar.with_name("data"), files, tokenizer, max_bytes=100)
    run_job(job, tokenizer_directory)
    assert read_manifest(job.out).counts["documents"] == 1


def test_what_nobody_wrote_as_a_command_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = "pipe:touch was-run"
    Path("some.list").write_text(f"{given}\n")
    with pytest.raises(
        DataError, match=r"The list .*some\.list names a command: pipe:touch was-run"
    ):
        find_files(["@some.list"], commands=True)
    with pytest.raises(DataError, match=r"is not run\. Only INPUT"):
        find_files([given])
    Path(given).write_text("text")
    with pytest.raises(DataError, match="What do these files hold"):
        find_files([given], commands=True)
    assert find_files([given], told="text", commands=True)[0].num_bytes == 4
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pipe:", "'pipe:' is no command"),
        ("pipe:echo a::b", "'b' is no command"),
        ("pipe:cat {0..3", "braces that name several commands do not match"),
    ],
)
def test_what_is_no_command(given: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_files([given], commands=True)


def test_a_command_is_a_tar(tar: Path) -> None:
    with pytest.raises(DataError, match=r"a webdataset tar \(--format tar\), not jsonl"):
        find_files([piped(tar)], told="jsonl", commands=True)


def test_a_command_is_no_path() -> None:
    given = "pipe:curl https://site.org//a.tar"
    assert absolute(given) == given
    assert absolute("pipe:cat a.tar") == "pipe:cat a.tar"
    assert folders_of([given, "pipe:cat a.tar"]) == []
    (source,) = find_files([given], commands=True)
    assert str(source.path) == source.name == given


def test_the_command_runs_it(tar: Path, tokenizer_directory: Path) -> None:
    arguments = ["tokenize", piped(tar, "; exit 7"), "--on-bad-document", "skip"]
    arguments += ["--tokenizer", str(tokenizer_directory), "--out", str(tar.with_name("data"))]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, EsolmError)
    assert "some texts.tar'; exit 7 failed with exit code 7" in str(result.exception)
    assert "exit code" not in result.output, "it is said once"
