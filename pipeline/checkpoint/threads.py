"""Files are written, checked and read by several threads of a rank at once."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 4
"""Of a rank: more do not make a disk faster, and a node has several ranks."""

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_threads(act: Callable[[Given], Made], each: Iterable[Given]) -> Iterator[Made]:
    """`map` by several threads, in order; what one of them raises is raised here."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="files") as pool:
        yield from pool.map(act, each)
