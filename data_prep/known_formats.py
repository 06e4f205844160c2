"""Which format a file has: by its name, or told."""

from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from esolm.data_prep.archive_formats import TextTar, Warc
from esolm.data_prep.errors import DataError
from esolm.data_prep.formats import GROUP, Format
from esolm.data_prep.pipes import is_piped
from esolm.data_prep.table_formats import ArrowTable, Parquet
from esolm.data_prep.text_formats import Json, JsonLines, PlainLines, PlainText

AUTO = "auto"
"""By the file's name; a name that says nothing is refused."""
ANY = "any"
"""By the file's name; a file whose name says nothing is text."""
SHIPPED: dict[str, Format] = {
    "jsonl": JsonLines(),
    "json": Json(),
    "parquet": Parquet(),
    "arrow": ArrowTable(),
    "tar": TextTar(),
    "warc": Warc(),
    "lines": PlainLines(),
    "text": PlainText(),
}


def format_of(path: Path, told: str = AUTO) -> str | None:
    """Return the name of a file's format; None if its name says nothing and it was not told.

    told: "auto", "any" or the name of a format. Formats of other packages come first. Raises
    DataError if there is no format of that name.
    """
    if told not in (AUTO, ANY):
        if told not in formats():
            raise DataError(f"--format is '{told}'; choose of {AUTO}, {', '.join(formats())}.")
        return told
    if is_piped(path):
        return "tar"
    suits = (name for name, each in formats().items() if each.suits(path))
    return next(suits, "text" if told == ANY else None)


@lru_cache(maxsize=1)
def formats() -> dict[str, Format]:
    """Return every format by name, those of installed packages first."""
    added = {entry.name: entry.load() for entry in entry_points(group=GROUP)}
    return {**added, **SHIPPED}
