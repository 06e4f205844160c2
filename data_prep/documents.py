"""Documents from files of text and JSON (also .gz and .zst), directories and Python's own library.

The order depends on the inputs alone, and a document has the same index whichever task reads it:
files come in the order given, those of a directory in the sorted order of their relative paths, and
the documents of a file in the order of its format (`esolm.data_prep.formats`).
"""

import logging
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import RawDocument, UnusableError
from esolm.data_prep.known_formats import AUTO, format_of, formats

# The library's test suites hold files in deliberately wrong encodings, and little prose.
STDLIB_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus, with the figures by which a changed input is noticed."""

    path: Path
    name: str
    """The path relative to the input that named it, which is the same under every mount point."""
    num_bytes: int
    modified_ns: int
    format: str
    """The name of what it holds; see `esolm.data_prep.formats`."""


@dataclass(frozen=True)
class Document:
    """A text with its place in the corpus."""

    index: int
    text: str
    location: str
    """FILE, or FILE:LINE for JSONL."""
    num_bytes: int
    """The bytes that the document takes in the uncompressed source."""


@dataclass
class BadDocuments:
    """Decides about documents that cannot be read: they are an error, or skipped and counted."""

    policy: str = "error"
    count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.policy not in ("error", "skip"):
            raise DataError(f"--on-bad-document is '{self.policy}'; give 'error' or 'skip'.")

    def report(self, location: str, problem: str) -> None:
        """Count a bad document, or raise DataError, which names the place and the way out."""
        if self.policy == "error":
            raise DataError(
                f"{location}: {problem}. Repair it, or pass --on-bad-document skip to leave such "
                "documents out and have them counted."
            )
        self.count += 1
        logger.warning("skipped %s: %s", location, problem)


def _source_file(path: Path, name: str, told: str) -> SourceFile:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(
            f"{path} is no regular file. Every step reads the corpus anew, so text must lie in "
            "files: write it to one, or take this out of the INPUT."
        )
    return SourceFile(path, name, found.st_size, found.st_mtime_ns, format_of(path, told) or "")


def _unreadable(error: OSError) -> DataError:
    return DataError(
        f"{error.filename} cannot be read ({error.strerror}). Repair it, or take it out of the "
        "INPUT."
    )


def _raise(error: OSError) -> None:
    raise _unreadable(error) from error


def _is_new(path: Path, seen: set[Path]) -> bool:
    is_new = path not in seen
    seen.add(path)
    return is_new


def _walk(directory: Path, excluded: frozenset[str], suffix: str, told: str) -> list[SourceFile]:
    found = []
    seen = {directory.resolve()}
    for folder, subfolders, names in os.walk(directory, onerror=_raise, followlinks=True):
        wanted = sorted(s for s in subfolders if s not in excluded and not s.startswith("."))
        # A folder is entered only the first time it is met, because links may lead in a circle.
        subfolders[:] = [s for s in wanted if _is_new(Path(folder, s).resolve(), seen)]
        for name in names:
            if name.endswith(suffix) and not name.startswith("."):
                path = Path(folder, name)
                found.append(_source_file(path, path.relative_to(directory).as_posix(), told))
    return sorted(found, key=lambda source: source.name)


def python_stdlib_files() -> list[SourceFile]:
    """Return the source files of the running interpreter's library, without its test suites."""
    directory = Path(sysconfig.get_paths()["stdlib"])
    files = (
        _walk(directory, frozenset(STDLIB_EXCLUDED), ".py", "text") if directory.is_dir() else []
    )
    if not files:
        raise DataError(
            f"The running Python keeps no library sources in {directory}. Pass text files instead."
        )
    return files


def find_files(
    inputs: Sequence[Path], from_python_stdlib: bool = False, told: str = AUTO
) -> list[SourceFile]:
    """Return the files behind a list of files and directories (hidden ones are left out).

    told: the format of the inputs, as for `format_of`. Links are followed. Raises DataError when an
    input does not exist (all missing ones are named), when something is no readable regular file or
    its name says nothing of its format, or when nothing is found.
    """
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise DataError(f"No such file or directory: {', '.join(missing)}. Check the INPUT paths.")
    files: list[SourceFile] = []
    for path in inputs:
        if path.is_dir():
            files += _walk(path, frozenset(), "", told)
        else:
            files.append(_source_file(path, path.name, told))
    _refuse_unknown([source for source in files if not source.format])
    if from_python_stdlib:
        files += python_stdlib_files()
    if not files:
        where = f" in {', '.join(map(str, inputs))}" if inputs else ""
        raise DataError(
            f"No input files{where}. Give text or JSONL files, or --from-python-stdlib."
        )
    return files


def _refuse_unknown(files: Sequence[SourceFile]) -> None:
    if files:
        some = ", ".join(str(source.path) for source in files[:5])
        more = f" and {len(files) - 5:,} more" if len(files) > 5 else ""
        raise DataError(
            f"What do these files hold? Their names do not say: {some}{more}. Take them out of the "
            "INPUT, or say it for all of it with --format text or --format jsonl (prep.format)."
        )


def iterate_documents(
    files: Sequence[SourceFile],
    bad: BadDocuments,
    text_key: str = "text",
    task: int = 0,
    num_tasks: int = 1,
) -> Iterator[Document]:
    """Yield the documents whose index is `task` modulo `num_tasks`, in order of index.

    A bad document keeps its index, so leaving it out moves no other document to another task.
    Raises DataError for damaged compressed files, and for bad documents by the policy of `bad`.
    """
    index = 0
    for source in files:
        for piece in formats()[source.format].pieces(source.path, text_key):
            if index % num_tasks == task:
                yield from _read(piece, index, bad)
            index += 1


def _read(piece: RawDocument, index: int, bad: BadDocuments) -> Iterator[Document]:
    try:
        text, num_bytes = piece.read()
    except UnusableError as error:
        line = "" if error.line is None else f":{error.line}"
        bad.report(f"{piece.location}{line}", str(error))
    else:
        yield Document(index, text, piece.location, num_bytes)
