"""Ways in which a file gets damaged, for drills over every file of a folder."""

from collections.abc import Callable
from pathlib import Path


def flipped(path: Path) -> None:
    """One bit in the middle is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    """The end is missing, and not only a line break."""
    path.write_bytes(path.read_bytes()[:-2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def swapped(path: Path) -> None:
    """With another of its kind, where there is one; else with itself back to front."""
    others = [p for p in path.parent.glob(f"*{''.join(path.suffixes)}") if p != path]
    path.write_bytes(others[0].read_bytes() if others else path.read_bytes()[::-1])


def a_folder(path: Path) -> None:
    """Which cannot be read as a file, by root neither."""
    path.unlink()
    path.mkdir()


def removed(path: Path) -> None:
    path.unlink()


DAMAGES: list[Callable[[Path], None]] = [flipped, truncated, emptied, swapped, a_folder, removed]
