"""The corpus of Debian's documentation, from packages and an apt repository that are made here."""

import gzip
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from esolm.data_prep import debian
from esolm.data_prep.bad_documents import BadDocuments
from esolm.data_prep.documents import iterate_documents
from esolm.data_prep.errors import DataError
from esolm.data_prep.prose import SOURCES, build
from esolm.data_prep.sources import find_files

PROGRAMS = (*debian.NEEDED, "dpkg-deb")
pytestmark = pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS), reason=f"needs {PROGRAMS}"
)

DICTIONARY = [b"00-database-url\n  of nobody\n", b"cat\n  An animal.\n", b"bad \x92\n"]
INDEX = "00-database-url\tA\tc\nCat\tc\tR\nbad\tt\tG\ncat\tc\tR\n"
DOC, PERL = "usr/share/doc", "usr/share/perl/5.36.0/pod"
FILES = {
    "linux-doc": {},
    "linux-doc-6.1": {
        f"{DOC}/linux-doc-6.1/Documentation/a/two.rst.gz": gzip.compress(b"Two\n"),
        f"{DOC}/linux-doc-6.1/Documentation/one.rst.gz": gzip.compress("Größe\n".encode()),
        f"{DOC}/linux-doc-6.1/html/one.html": b"<p>the same again</p>",
    },
    "python3-doc": {},
    "python3.11-doc": {f"{DOC}/python3.11/html/_sources/c/api.rst.txt": b"API\n"},
    "perl-doc": {f"{PERL}/perl.pod": b"=head1 NAME\n", f"{PERL}/perlfaq.pod": b"=head1 FAQ\n"},
    "dict-gcide": {
        "usr/share/dictd/gcide.dict.dz": gzip.compress(b"".join(DICTIONARY)),
        "usr/share/dictd/gcide.index": INDEX.encode(),
    },
}
DEPENDS = {"linux-doc": "linux-doc-6.1", "python3-doc": "python3.11-doc"}


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Repository:
    """An apt repository in a folder, the only one that apt knows of while the test runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state/lists/partial", "cache/archives/partial", "debs"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [trusted=yes] copy:{folder}/debs ./\n")
        self.configuration = folder / "apt.conf"
        self.configuration.write_text(
            f'Dir::State "{folder}/state"; Dir::State::status "{folder}/status";\n'
            f'Dir::Cache "{folder}/cache"; Dir::Etc::sourcelist "{folder}/sources.list";\n'
            f'Dir::Etc::sourceparts "-"; APT::Sandbox::User "root";\n'
        )

    def add(self, package: str, version: str, files: dict[str, bytes]) -> None:
        tree = self.folder / "tree" / f"{package}_{version}"
        for name, content in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
        control = f"Package: {package}\nVersion: {version}\nArchitecture: all\n"
        control += "Maintainer: nobody <nobody@example.org>\nDescription: of a test\n"
        if package in DEPENDS:
            control += f"Depends: {DEPENDS[package]}\n"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(control)
        deb = self.folder / "debs" / f"{package}_{version}_all.deb"
        run("dpkg-deb", "--build", "--root-owner-group", tree, deb)
        content = deb.read_bytes()
        entry = f"{control}Filename: ./{deb.name}\nSize: {len(content)}\n"
        entry += f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n"
        with (self.folder / "debs" / "Packages").open("a") as packages:
            packages.write(entry)

    def update(self) -> None:
        run("apt-get", "update")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    made = Repository(tmp_path / "repository")
    monkeypatch.setenv("APT_CONFIG", str(made.configuration))
    for package, files in FILES.items():
        made.add(package, "1.0", files)
    made.update()
    return made


def test_every_source_becomes_json_lines(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    reports = {report.source: report for report in build(SOURCES, out)}
    lines = (out / "text" / "linux.jsonl").read_text().splitlines()
    texts = [(record["text"], record["source"]) for record in map(json.loads, lines)]
    assert texts == [("Two\n", "linux"), ("Größe\n", "linux")]
    assert (reports["linux"].documents, reports["linux"].text_bytes) == (2, 12)
    assert (reports["gcide"].documents, reports["gcide"].unreadable) == (1, 1)
    entry = json.loads((out / "text" / "gcide.jsonl").read_text())
    assert entry["text"] == "cat\n  An animal.\n", "an entry with two words is one document"
    assert reports["linux"].package == "linux-doc-6.1_1.0_all.deb"
    stated = json.loads((out / "report.json").read_text())["sources"]
    assert [source["documents"] for source in stated] == [2, 1, 2, 1]
    documents = list(iterate_documents(find_files([out / "text"]), BadDocuments()))
    assert len(documents) == 6, "the folder is an input of esolm prep"
    assert not (out / "unfinished").exists()


def test_a_second_call_makes_only_what_is_missing_or_new(
    repository: Repository, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    first = build(SOURCES, out)
    contents = {path.name: path.read_bytes() for path in (out / "text").iterdir()}
    linux, gcide = out / "text" / "linux.jsonl", out / "text" / "gcide.jsonl"
    inode = gcide.stat().st_ino
    linux.write_bytes(linux.read_bytes()[:-1])
    (out / "text" / "perl.jsonl").unlink()
    (out / "unfinished").mkdir()
    (out / "unfinished" / "rest").touch()
    assert build(SOURCES, out) == first
    assert {path.name: path.read_bytes() for path in (out / "text").iterdir()} == contents
    assert gcide.stat().st_ino == inode
    repository.add("perl-doc", "1.1", {f"{PERL}/perl.pod": b"=head1 NEW\n"})
    repository.update()
    perl = {report.source: report for report in build(SOURCES, out)}["perl"]
    assert (perl.package, perl.documents) == ("perl-doc_1.1_all.deb", 1)


def test_what_is_missing_is_one_clear_error(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    packages = repository.folder / "debs" / "Packages"
    known = packages.read_text()
    packages.write_text(known.replace("Package: perl-doc\n", "Package: other\n"))
    repository.update()
    with pytest.raises(DataError, match=r"perl-doc: .*Unable to locate package.*apt-get update"):
        build(SOURCES, out)
    repository.add("perl-doc", "2.0", {"usr/share/doc/perl-doc/copyright": b"-"})
    repository.update()
    with pytest.raises(DataError, match="holds none of the documents that source 'perl'"):
        build(SOURCES, out)
    gcide = out / "packages" / "dict-gcide_1.0_all.deb"
    gcide.write_bytes(b"no package")
    with pytest.raises(DataError, match=f"Delete {gcide} and run"):
        build([source for source in SOURCES if source.name == "gcide"], out)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get, apt-cache, dpkg: not found.*Debian"):
        build(SOURCES, out)
