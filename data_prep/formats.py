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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from esolm.data_prep.compression import without_compression_suffix

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
