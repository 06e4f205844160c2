"""What the files of the corpus hold: each file has one format, chosen by its name or told.

A `Format` says which files are its own, and cuts such a file into pieces, one for each document.
Cutting must be cheap and always the same, because every task counts the pieces of every file and
reads only its own. A piece whose `read` raises `UnusableError` is a bad document.

To add one of your own, write it in a package that is installed, and name it among the entry points
of the group `esolm.formats`. This one takes tables of comma-separated values:

```python
import csv
import io
from functools import partial

from esolm.data_prep.compression import open_decompressed
from esolm.data_prep.formats import Format, RawDocument, UnusableError


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

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from esolm.data_prep.compression import open_decompressed, without_compression_suffix
from esolm.data_prep.errors import DataError

GROUP = "esolm.formats"
"""The entry points of this group name the `Format` objects of other packages."""


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


class Format(ABC):
    """A kind of file.

    suffixes: those that names of such files have, in lower case, before one of compression.
    """

    suffixes: tuple[str, ...] = ()

    def suits(self, path: Path) -> bool:
        """Say whether a file is of this format."""
        return without_compression_suffix(path).suffix.lower() in self.suffixes

    @abstractmethod
    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        """The documents of a file in their order. text_key: where an object holds its text."""


class JsonLines(Format):
    """One document for each line that is not blank: an object that holds a text."""

    suffixes = (".jsonl", ".ndjson")

    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        with open_decompressed(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield RawDocument(f"{path}:{number}", partial(self.text_of, line, text_key))

    @staticmethod
    def text_of(line: bytes, text_key: str) -> tuple[str, int]:
        """Return the text of an object in JSON, and how many bytes the object takes."""
        try:
            record = json.loads(line.decode("utf-8"))
            text = record[text_key] if isinstance(record, dict) else None
            if isinstance(text, str):
                text.encode("utf-8")
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise UnusableError(f"invalid Unicode ({error.reason})") from error
        except ValueError as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UnusableError(f"invalid JSON ({problem})") from error
        except RecursionError as error:
            raise UnusableError("JSON nested too deeply") from error
        except KeyError as error:
            raise UnusableError(f"no key '{text_key}' (choose another with --text-key)") from error
        if not isinstance(text, str):
            raise UnusableError(f"not an object whose '{text_key}' is a string")
        return text, len(line)


class Json(Format):
    """JSON lines, if the first line is an object by itself; else one object, or a list of them.

    Corpora such as C4 give files of JSON lines this name. A list is read into memory as a whole.
    """

    suffixes = (".json",)

    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        lines = JsonLines()
        with open_decompressed(path) as stream:
            first = next((line for line in stream if line.strip()), b"{}")
        if _is_object(first):
            yield from lines.pieces(path, text_key)
            return
        with open_decompressed(path) as stream:
            content = stream.read()
        values = _list_in(content)
        if values is None:
            yield RawDocument(str(path), partial(lines.text_of, content, text_key))
            return
        for number, value in enumerate(values):
            one = json.dumps(value).encode()
            yield RawDocument(f"{path}[{number}]", partial(lines.text_of, one, text_key))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _list_in(content: bytes) -> list[Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None  # which `text_of` says in words
    return value if isinstance(value, list) else None


class PlainText(Format):
    """One document in UTF-8."""

    suffixes = (
        *(".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".org", ".srt"),
        *(".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".hpp", ".java", ".js", ".kt", ".lua"),
        *(".php", ".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts"),
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


AUTO = "auto"
"""By the file's name; a name that says nothing is refused."""
ANY = "any"
"""By the file's name; a file whose name says nothing is text."""


def format_of(path: Path, told: str = AUTO) -> str | None:
    """Return the name of a file's format; None if its name says nothing and it was not told.

    told: "auto", "any" or the name of a format. Formats of other packages come first. Raises
    DataError if there is no format of that name.
    """
    if told not in (AUTO, ANY):
        if told not in formats():
            raise DataError(f"--format is '{told}'; choose of {AUTO}, {', '.join(formats())}.")
        return told
    suits = (name for name, each in formats().items() if each.suits(path))
    return next(suits, "text" if told == ANY else None)


@lru_cache(maxsize=1)
def formats() -> dict[str, Format]:
    """Return every format by name, those of installed packages first."""
    added = {entry.name: entry.load() for entry in entry_points(group=GROUP)}
    return {**added, "jsonl": JsonLines(), "json": Json(), "text": PlainText()}
