"""JSON as a corpus: one object a line, or one array or object in one piece."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.compression import open_decompressed
from data_prep.formats import Format, RawDocument, UnusableError, suffix_of

BY_CONTENT = ".json"
"""Names that end so may hold either; those of C4 hold lines."""


class JsonLines(Format):
    """One document for each line that is not blank: an object that holds a text."""

    suffixes = (".jsonl", ".ndjson")

    def suits(self, path: Path) -> bool:
        return super().suits(path) or (suffix_of(path) == BY_CONTENT and _holds_lines(path))

    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        with open_decompressed(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield RawDocument(f"{path}:{number}", partial(self._read, line, text_key))

    @staticmethod
    def _read(line: bytes, text_key: str) -> tuple[str, int]:
        return _text_of(_parsed(line), text_key), len(line)


class JsonInOnePiece(Format):
    """One object is one document, and of an array each object in it is one."""

    suffixes = (BY_CONTENT,)

    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        with open_decompressed(path) as stream:
            content = stream.read()
        try:
            record = _parsed(content)
        except UnusableError as error:
            yield RawDocument(str(path), partial(_refuse, error))
            return
        if not isinstance(record, list):
            yield RawDocument(str(path), partial(self._read, record, text_key))
            return
        for number, entry in enumerate(record):
            yield RawDocument(f"{path}[{number}]", partial(self._read, entry, text_key))

    @staticmethod
    def _read(record: Any, text_key: str) -> tuple[str, int]:
        text = _text_of(record, text_key)
        return text, len(text.encode())


def _holds_lines(path: Path) -> bool:
    """Return whether one of the first two lines is an object by itself.

    Of one that is written over several lines, the first is no more than its beginning. Two lines
    are read, so that a damaged first one does not make a file of lines a single document.
    """
    with open_decompressed(path) as stream:
        lines = list(islice((line for line in stream if line.strip()), 2))
    if not lines or lines[0].strip() in (b"{", b"["):
        return False
    return any(_is_object(line) for line in lines)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(_parsed(line), dict)
    except UnusableError:
        return False


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnusableError(f"invalid Unicode ({error.reason})") from error
    except ValueError as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UnusableError(f"invalid JSON ({problem})") from error
    except RecursionError as error:
        raise UnusableError("JSON nested too deeply") from error


def _text_of(record: Any, text_key: str) -> str:
    if isinstance(record, dict) and text_key not in record:
        raise UnusableError(f"no key '{text_key}' (choose another with --text-key)")
    text = record[text_key] if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UnusableError(f"not an object whose '{text_key}' is a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableError(f"invalid Unicode ({error.reason})") from error
    return text


def _refuse(error: UnusableError) -> tuple[str, int]:
    raise error
