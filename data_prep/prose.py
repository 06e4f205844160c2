"""`make corpus`: 84 MB of real prose from Debian's documentation packages, as JSON lines.

One file for each source, of objects with `text`, `id` and `source`. The packages hold the text that
their pages were made from (reStructuredText, POD, a dictionary's entries), so nothing has to be won
back from HTML, which says the same again. Licences are those of the packages: GPL-2 (linux),
PSF (python), Artistic or GPL (perl), GPL-2 or later (gcide). Run it with
`python -m esolm.data_prep.prose --out runs/corpus`.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from esolm.data_prep import debian
from esolm.data_prep.compression import open_decompressed
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import read_json, write_atomic, write_json
from esolm.data_prep.progress import phase

DICTIONARY_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
REPORT_NAME = "report.json"

Documents = Iterator[tuple[str, bytes]]
"""(id, content) of each."""


@dataclass(frozen=True)
class ProseSource:
    """Where the documents of one source lie.

    pattern: of the name of the package, if `package` only depends on it. documents: those below the
    folder into which it was unpacked.
    """

    name: str
    package: str
    pattern: str | None
    documents: Callable[[Path], Documents]


@dataclass(frozen=True)
class SourceReport:
    """What was made of one package: its file's name says which version it is."""

    source: str
    package: str
    documents: int
    unreadable: int
    """How many are left out because they are no UTF-8."""
    text_bytes: int
    """Of the texts alone, in UTF-8."""
    file_bytes: int
    sha256: str


def files_named(pattern: str) -> Callable[[Path], Documents]:
    """Return what yields each file whose path is of the glob pattern as a document."""

    def documents(folder: Path) -> Documents:
        for path in sorted(folder.glob(pattern)):
            with open_decompressed(path) as stream:
                yield path.relative_to(folder).as_posix(), stream.read()

    return documents


def dictionary_entries(folder: Path) -> Documents:
    """Yield the entries of the dictionaries below a folder, in their order.

    A dictionary is a gzip file (`.dict.dz`) and an index, whose lines are a word, the place of its
    entry and its length, both in base 64; an entry has a line for each word that leads to it.
    """
    for path in sorted(folder.rglob("*.dict.dz")):
        with gzip.open(path) as stream:
            content = stream.read()
        index = path.with_name(path.name.removesuffix(".dict.dz") + ".index")
        places: dict[tuple[int, int], str] = {}
        for line in index.read_text("utf-8").splitlines():
            word, start, length = line.split("\t")
            if not word.startswith("00-database"):
                places.setdefault((_number(start), _number(length)), word)
        for (place, size), word in sorted(places.items()):
            yield f"{word}@{place}", content[place : place + size]


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * len(DICTIONARY_DIGITS) + DICTIONARY_DIGITS.index(digit)
    return value


SOURCES = (
    ProseSource(
        "linux",
        "linux-doc",
        r"linux-doc-[\d.]+",
        files_named("usr/share/doc/linux-doc-*/Documentation/**/*.rst.gz"),
    ),
    ProseSource(
        "python",
        "python3-doc",
        r"python3\.\d+-doc",
        files_named("usr/share/doc/python3.*[0-9]/html/_sources/**/*.rst.txt"),
    ),
    ProseSource("perl", "perl-doc", None, files_named("usr/share/perl/*/pod/*.pod")),
    ProseSource("gcide", "dict-gcide", None, dictionary_entries),
)


def build(sources: Iterable[ProseSource], out: Path) -> list[SourceReport]:
    """Write OUT/text/NAME.jsonl of every source, and OUT/report.json; return the reports.

    What an earlier call has finished of the same version of a package is kept. Raises DataError
    when the programs or a package are missing, or a package holds no documents.
    """
    debian.check_programs()
    for name in ("text", "packages"):
        (out / name).mkdir(parents=True, exist_ok=True)
    reports = []
    for source in sources:
        with phase(source.name), _empty_folder(out / "unfinished") as unfinished:
            reports.append(_build_source(source, out, unfinished))
    write_json(out / REPORT_NAME, {"sources": [asdict(report) for report in reports]})
    return reports


@contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    """Make a folder for a while; what a killed process left there is removed first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _build_source(source: ProseSource, out: Path, unfinished: Path) -> SourceReport:
    name = source.package
    if source.pattern is not None:
        name = debian.resolve(name, source.pattern)
    package = debian.download(name, out / "packages", unfinished)
    record = out / "packages" / f"{source.name}.json"
    written = out / "text" / f"{source.name}.jsonl"
    if record.exists():
        report = SourceReport(**read_json(record, "Delete it and run the same command again."))
        is_whole = written.exists() and written.stat().st_size == report.file_bytes
        if is_whole and report.package == package.name:
            return report
    debian.unpack(package, unfinished)
    report = _write(source, unfinished, written, package.name)
    write_json(record, asdict(report))
    return report


def _write(source: ProseSource, folder: Path, path: Path, package: str) -> SourceReport:
    lines = []
    text_bytes = unreadable = 0
    for name, content in source.documents(folder):
        try:
            record = {"text": content.decode("utf-8"), "id": name, "source": source.name}
        except UnicodeDecodeError:
            unreadable += 1
            continue
        text_bytes += len(content)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(
            f"{package} holds none of the documents that source '{source.name}' is made of: this "
            "system's package lays its files out in another way. Use one of Debian 12."
        )
    whole = "".join(lines).encode()
    write_atomic(path, whole)
    digest = hashlib.sha256(whole).hexdigest()
    return SourceReport(
        source.name, package, len(lines), unreadable, text_bytes, len(whole), digest
    )


def main() -> None:
    """Build the corpus and print how many documents and bytes each source has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/corpus"))
    out = parser.parse_args().out
    try:
        reports = build(SOURCES, out)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    for each in reports:
        print(
            f"{each.source}: {each.documents:,} documents, {each.text_bytes:,} bytes of text, "
            f"{each.unreadable} left out as no UTF-8, {each.package}"
        )
    total = sum(each.text_bytes for each in reports)
    print(f"{out}: {sum(each.documents for each in reports):,} documents, {total:,} bytes of text")


if __name__ == "__main__":
    main()
