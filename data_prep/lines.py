"""The lines of a file, or of a stretch of its bytes, each in bounded memory."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from esolm.data_prep.compression import READ_BYTES, open_decompressed


class Line(NamedTuple):
    """A line with its end.

    number: from 1, counted from the byte `origin` of the file. is_cut: whether the line is longer
    than what is here.
    """

    number: int
    origin: int
    content: bytes
    is_cut: bool


def lines_of(path: Path, longest: int) -> Iterator[Line]:
    """Yield the lines of a file, decompressed by its suffix; of each at most `longest` bytes."""
    with open_decompressed(path) as stream:
        yield from _lines(stream, longest, 0, None)


def lines_between(path: Path, longest: int, start: int, stop: int) -> Iterator[Line]:
    """Yield the lines that begin at a byte from `start` up to, without, `stop`."""
    with open_decompressed(path) as stream:
        if start > 0:
            # The line that holds the byte before `start` belongs to the stretch before.
            stream.seek(start - 1)
            start += _skip_line(stream) - 1
        yield from _lines(stream, longest, start, stop)


def _lines(stream: IO[bytes], longest: int, start: int, stop: int | None) -> Iterator[Line]:
    place, number = start, 0
    while stop is None or place < stop:
        content = stream.readline(longest)
        if not content:
            return
        number += 1
        place += len(content)
        is_cut = len(content) == longest and not content.endswith(b"\n")
        if is_cut:
            rest = _skip_line(stream)
            place += rest
            is_cut = rest > 0
        yield Line(number, start, content, is_cut)


def _skip_line(stream: IO[bytes]) -> int:
    """Read to the end of the line and return the number of bytes."""
    skipped = 0
    while part := stream.readline(READ_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


@lru_cache(maxsize=64)
def num_lines_before(path: Path, place: int) -> int:
    """Return how many lines end before a byte of a file. It is read up to there."""
    num_lines = 0
    with open_decompressed(path) as stream:
        while place > 0 and (block := stream.read(min(place, READ_BYTES))):
            num_lines += block.count(b"\n")
            place -= len(block)
    return num_lines
