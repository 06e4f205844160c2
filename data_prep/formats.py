"""What the files of the corpus hold: each file has one format, chosen by its name or told.

A `Format` says which files are its own, and cuts such a file into pieces, one for each document.
Cutting must always be the same. A piece whose `read` raises `UnusableError` is a bad document; a
`DataError` while cutting makes the rest of the file bad.

To add one of your own, write it in a package that is installed, and name it among the entry points
of the group `esolm.formats`. This one takes tables of comma-separated values:

```python
import csv
import io
from functools import partial

from esolm.data_prep.compression import open_decompressed
from esolm.data_prep.formats import Format, Passage, Place, RawDocument, UnusableError


class CommaSeparated(Format):
    suffixes = (".csv",)

    def pieces(self, path, options):
        with open_decompressed(path) as stream:
            rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline=""))
            for row in rows:
                place = Place(str(path), line=rows.line_num)
                yield RawDocument(place, partial(self.text_of, row, options.text_key))

    def text_of(self, row, text_key):
        if row.get(text_key) is None:
            raise UnusableError(f"no column '{text_key}' (choose another with --text-key)")
        return Passage(row[text_key], len(row[text_key].encode()))


FORMAT = CommaSeparated()
```

A format whose files can be read from the middle says so by `can_be_cut`, so that several tasks
share a large one: `pieces_between` gives the documents that begin within a range of bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from esolm.data_prep.compression import without_compression_suffix
from esolm.data_prep.plain_values import plain

GROUP = "esolm.formats"
"""The entry points of this group name the `Format` objects of other packages."""
MOST_DOCUMENT_BYTES = 1 << 27
"""Of the longest document, by default. A task holds one document as bytes and as text at once, and
the text may take four times as much."""
MAY_BE_MISSING = "?"
"""Behind the name of a field: it is kept of the documents that have it."""

NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


class UnusableError(Exception):
    """A piece holds no text that can be used.

    line: the line within the piece, where that helps to find the problem.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True)
class ReadOptions:
    """What is taken from a file."""

    text_key: str = "text"
    """The key of an object, or the column of a table, that holds the text."""
    id_key: str = ""
    """That of the document's name, if there is one."""
    most_bytes: int = MOST_DOCUMENT_BYTES
    """A longer document is a bad one."""
    metadata: tuple[str, ...] = ()
    """The fields that are kept of a document, each by its name; with ? behind it may be missing."""

    @property
    def field_names(self) -> list[str]:
        """The names of the fields that are kept."""
        return [field.removesuffix(MAY_BE_MISSING) for field in self.metadata]

    @property
    def needed_fields(self) -> list[str]:
        """The names of those that no document may lack."""
        return [field for field in self.metadata if not field.endswith(MAY_BE_MISSING)]

    def fields_of(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the fields that are kept of a document, as JSON has them; None for a missing one.

        Raises UnusableError if one is missing that may not be, or is nested too deeply.
        """
        if not self.metadata:
            return NO_FIELDS
        for name in self.needed_fields:
            if name not in record:
                raise UnusableError(
                    f"no field '{name}' (--metadata; '{name}{MAY_BE_MISSING}' takes documents "
                    "without it)"
                )
        try:
            return {name: plain(record.get(name)) for name in self.field_names}
        except RecursionError as error:
            raise UnusableError("a field of --metadata is nested too deeply") from error

    def check_length(self, num_bytes: int) -> None:
        """Raise UnusableError if a document of so many bytes is too long."""
        if num_bytes > self.most_bytes:
            raise UnusableError(
                f"longer than {self.most_bytes:,} bytes (cut it, read it with --format lines, or "
                "raise --max-document-bytes and the memory of a task)"
            )


class Place(NamedTuple):
    """Where a document stands: a file, and a line (from 1), a row (from 0) or a member of it.

    from_byte: where in the file the lines are counted from, if that is not its beginning.
    """

    file: str
    line: int | None = None
    row: int | None = None
    member: str | None = None
    from_byte: int | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.file}:{self.line}"
        part = self.row if self.member is None else self.member
        return self.file if part is None else f"{self.file}[{part}]"

    def to_record(self) -> dict[str, Any]:
        """Return what is known of the place."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class Passage(NamedTuple):
    """The text of a document, and how many bytes it takes in the uncompressed source.

    metadata: what `ReadOptions.fields_of` returns of its fields, if it has any.
    """

    text: str
    num_bytes: int
    id: str = ""
    metadata: Mapping[str, Any] = NO_FIELDS


class RawDocument(NamedTuple):
    """A document that is not read yet, and its place."""

    place: Place
    read: Callable[[], Passage]


class Format(ABC):
    """A kind of file.

    suffixes: those that names of such files have, in lower case, before one of compression.
    """

    suffixes: tuple[str, ...] = ()

    def suits(self, path: Path) -> bool:
        """Say whether a file is of this format."""
        return without_compression_suffix(path).suffix.lower() in self.suffixes

    def can_be_cut(self, path: Path) -> bool:
        """Say whether `pieces_between` works for a file."""
        return False

    @abstractmethod
    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        """The documents of a file in their order."""

    def pieces_between(
        self, path: Path, options: ReadOptions, start: int, stop: int
    ) -> Iterator[RawDocument]:
        """The documents that begin at a byte of the file from `start` up to, without, `stop`.

        Ranges that follow each other give every document once.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot cut a file")
