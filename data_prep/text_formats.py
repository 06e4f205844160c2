"""The formats of text that are shipped: JSON lines, JSON, plain lines, and plain text."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from esolm.data_prep.compression import COMPRESSED_SUFFIXES, open_decompressed
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import (
    MOST_DOCUMENT_BYTES,
    Format,
    Passage,
    Place,
    RawDocument,
    ReadOptions,
    UnusableError,
)
from esolm.data_prep.lines import Line, lines_between, lines_of


class PlainLines(Format):
    """One document for each line that is not blank, without the line's end; only if it is told."""

    def can_be_cut(self, path: Path) -> bool:
        return path.suffix.lower() not in COMPRESSED_SUFFIXES

    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        return self._documents(lines_of(path, options.most_bytes), path, options)

    def pieces_between(
        self, path: Path, options: ReadOptions, start: int, stop: int
    ) -> Iterator[RawDocument]:
        lines = lines_between(path, options.most_bytes, start, stop)
        return self._documents(lines, path, options)

    def _documents(
        self, lines: Iterator[Line], path: Path, options: ReadOptions
    ) -> Iterator[RawDocument]:
        for line in lines:
            if line.content.strip():
                place = Place(str(path), line=line.number, from_byte=line.origin or None)
                yield RawDocument(place, partial(self._read, line, options))

    def _read(self, line: Line, options: ReadOptions) -> Passage:
        options.check_length(len(line.content) + line.is_cut)
        return self.text_of(line.content, options)

    def text_of(self, line: bytes, options: ReadOptions) -> Passage:
        """Return the text of a line; raises UnusableError if it has none."""
        try:
            return Passage(line.decode("utf-8").rstrip("\r\n"), len(line))
        except UnicodeDecodeError as error:
            raise UnusableError(f"invalid UTF-8 ({error.reason})") from error


class JsonLines(PlainLines):
    """One document for each line that is not blank: an object that holds a text."""

    suffixes = (".jsonl", ".ndjson")

    def text_of(self, line: bytes, options: ReadOptions) -> Passage:
        """Return the text of an object in JSON, and how many bytes the object takes."""
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UnusableError(f"invalid Unicode ({error.reason})") from error
        except ValueError as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UnusableError(f"invalid JSON ({problem})") from error
        except RecursionError as error:
            raise UnusableError("JSON nested too deeply") from error
        return _passage_of(record, len(line), options)


def _passage_of(record: Any, num_bytes: int, options: ReadOptions) -> Passage:
    """Return the text of an object; raises UnusableError if it has none."""
    try:
        text = record[options.text_key] if isinstance(record, dict) else None
        name = record[options.id_key] if options.id_key and text is not None else ""
    except KeyError as error:
        option = "--text-key" if options.text_key not in record else "--id-key"
        raise UnusableError(f"no key {error} (choose another with {option})") from error
    if not isinstance(text, str):
        raise UnusableError(f"not an object whose '{options.text_key}' is a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableError(f"invalid Unicode ({error.reason})") from error
    return Passage(text, num_bytes, str(name), options.fields_of(record))


class Json(Format):
    """JSON lines, if one of the first two is an object by itself; else one object, or a list.

    Corpora such as C4 give files of JSON lines this name. A list is read into memory as a whole.
    """

    suffixes = (".json",)
    _lines = JsonLines()

    def can_be_cut(self, path: Path) -> bool:
        return self._lines.can_be_cut(path) and self._are_lines(path)

    def pieces_between(
        self, path: Path, options: ReadOptions, start: int, stop: int
    ) -> Iterator[RawDocument]:
        return self._lines.pieces_between(path, options, start, stop)

    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        if self._are_lines(path):
            yield from self._lines.pieces(path, options)
            return
        with open_decompressed(path) as stream:
            content = stream.read(options.most_bytes + 1)
        if len(content) > options.most_bytes:
            raise DataError(
                f"{path} is no JSON lines and longer than {options.most_bytes:,} bytes, which are "
                "read as a whole. Make JSON lines of it, or raise --max-document-bytes."
            )
        values = _list_in(content)
        if values is None:
            read = partial(self._lines.text_of, content, options)
            yield RawDocument(Place(str(path)), read)
            return
        for number, value in enumerate(values):
            num_bytes = len(json.dumps(value))
            read = partial(_passage_of, value, num_bytes, options)
            yield RawDocument(Place(str(path), row=number), read)

    def _are_lines(self, path: Path) -> bool:
        """Say whether the first two lines are those of JSON lines, of which one may be damaged.

        The first line of an object or a list over several lines is no more than its beginning.
        """
        lines = (line.content for line in lines_of(path, MOST_DOCUMENT_BYTES))
        first = list(islice((line for line in lines if line.strip()), 2))
        if not first or first[0].strip() in (b"{", b"["):
            return not first
        return any(_is_object(line) for line in first)


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

    def pieces(self, path: Path, options: ReadOptions) -> Iterator[RawDocument]:
        yield RawDocument(Place(str(path)), partial(self._read, path, options))

    @staticmethod
    def _read(path: Path, options: ReadOptions) -> Passage:
        with open_decompressed(path) as stream:
            content = stream.read(options.most_bytes + 1)
        options.check_length(len(content))
        try:
            return Passage(content.decode("utf-8"), len(content))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            problem = f"invalid UTF-8 at byte {error.start} ({error.reason})"
            raise UnusableError(problem, line) from error
