"""The formats that are shipped: JSON lines, JSON, and plain text."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from esolm.data_prep.compression import open_decompressed
from esolm.data_prep.formats import Format, RawDocument, UnusableError


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
    """JSON lines, if one of the first two is an object by itself; else one object, or a list.

    Corpora such as C4 give files of JSON lines this name. A list is read into memory as a whole.
    """

    suffixes = (".json",)

    def pieces(self, path: Path, text_key: str) -> Iterator[RawDocument]:
        lines = JsonLines()
        with open_decompressed(path) as stream:
            first = list(islice((line for line in stream if line.strip()), 2))
        if _are_lines(first):
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


def _are_lines(first: list[bytes]) -> bool:
    """Say whether the first two lines are those of JSON lines, of which one may be damaged.

    The first line of an object or a list over several lines is no more than its beginning.
    """
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
