"""What the files of the corpus hold: each file has one format, which suits it.

A `Format` says which files are its own, by their names and, where names do not tell, by what they
hold, and cuts such a file into pieces, one for each document. The first that suits a file reads it:
those of other packages, then ours (`data_prep.json_formats`, and plain text below). A file that
suits none is refused by its name; `--format text` and `--format jsonl` say what all files are.
Cutting must be cheap and always the same, because every task counts the pieces of every file and
reads only its own. A piece whose `read` raises `UnusableError` is a bad document.

To add one of your own, write it in a package that is installed, and name it among the entry points
of the group `esolm.formats`. This one takes tables of comma-separated values:

```python
import csv
import io
from functools import partial

from data_prep.compression import open_decompressed
from data_prep.formats import Format, RawDocument, UnusableError


class CommaSeparated(Format):
    suffixes = (".csv",)

    def pieces(self, path, text_key):
        with open_decompressed(path) as stream:
            rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline=""))
            for row in rows:
                yield RawDocument(f"{path}:{rows.line_num}", partial(self.text_of, row, text_key))

    def text_of(self, row, text_key):
        if row.get(text_key) is None:
            raise UnusableError(f"no column '{text_key}' (choose another with --text-key)")
        return row[text_key], len(row[text_key].encode())


FORMAT = CommaSeparated()
```
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import entry_points
from pathlib import Path

from data_prep.compression import open_decompressed, without_compression_suffix
from data_prep.errors import DataError

GROUP = "esolm.formats"
"""The entry points of this group name the `Format` objects of other packages."""


AUTO = "auto"
FORMATS = (AUTO, "text", "jsonl")
"""The choices of --format and prep.format."""
MOST_NAMED = 5


class UnusableError(Exception):
    """A piece holds no text that can be used.

    line: the line within the piece, where that helps to find the problem.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True)
class RawDocument:
    """A document that is not read yet.

    location: FILE, or FILE:LINE. read: returns its text, and how many bytes it takes in the
    uncompressed source.
    """

    location: str
    read: Callable[[], tuple[str, int]]


def suffix_of(path: Path) -> str:
    """Return what a name ends in, in lower case, before a suffix of compression; or nothing."""
    return without_compression_suffix(path).suffix.lower()


class Format(ABC):
    """A kind of file.

    suffixes: those that names of such files have, in lower case, before one of compression.
    """

    suffixes: tuple[str, ...] = ()

    def suits(self, path: Path) -> bool:
        """Say whether a file is of this format; raise DataError if it cannot be read for that."""
        return suffix_of(path) in self.suffixes

    @abstractmethod
    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        """The documents of a file in their order. text_key: where an object holds its text."""


class PlainText(Format):
    """A file that is one document in UTF-8: prose, source code, or a name without a suffix."""

    suffixes = (
        "",
        *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".py", ".pyi", ".c", ".h"),
        *(".cc", ".cpp", ".hpp", ".java", ".js", ".ts", ".go", ".rs", ".sh"),
    )

    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        yield RawDocument(str(path), partial(self._read, path))

    @staticmethod
    def _read(path: Path) -> tuple[str, int]:
        with open_decompressed(path) as stream:
            content = stream.read()
        try:
            return content.decode("utf-8"), len(content)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            problem = f"invalid UTF-8 at byte {error.start} ({error.reason})"
            raise UnusableError(problem, line) from error


def formats_of(paths: Sequence[Path], chosen: str = AUTO) -> list[Format]:
    """Return the format of each file: the one that is chosen for all, or the first that suits it.

    Raises DataError, which names them, if there are files that none suits, or no such choice.
    """
    if chosen != AUTO:
        if chosen not in FORMATS:
            raise DataError(f"--format is '{chosen}'; give {', '.join(FORMATS[:-1])} or jsonl.")
        lines, _, text = _ours()
        return [text if chosen == "text" else lines] * len(paths)
    found = [next((each for each in _formats() if each.suits(path)), None) for path in paths]
    unknown = [str(path) for path, each in zip(paths, found, strict=True) if each is None]
    if unknown:
        more = len(unknown) - MOST_NAMED
        named = ", ".join(unknown[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise DataError(
            f"What these files hold is not known by their names: {named}. Say it with --format "
            "text or --format jsonl (prep.format), or take them out of the INPUT."
        )
    return [each for each in found if each is not None]


@lru_cache(maxsize=1)
def _formats() -> tuple[Format, ...]:
    added = [entry.load() for entry in entry_points(group=GROUP)]
    return (*added, *_ours())


def _ours() -> tuple[Format, ...]:
    # Imported here, because it is written against the contract above, as those of others are.
    from data_prep.json_formats import JsonInOnePiece, JsonLines

    return (JsonLines(), JsonInOnePiece(), PlainText())
