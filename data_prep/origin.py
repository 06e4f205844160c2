"""What a dataset was made from that is made of another dataset's tokens."""

from pathlib import Path
from typing import Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import ORIGIN_NAME, read_manifest, shard_problems
from esolm.data_prep.records import read_record, write_record

REMEDY = "Restore it from a copy, or make the dataset again."


def write_origin(data: Path, origin: dict[str, Any]) -> None:
    """Write down what a dataset was made from."""
    write_record(data / ORIGIN_NAME, origin)


def read_origin(data: Path) -> dict[str, Any] | None:
    """Return what a dataset was made from, or None if it was made from text."""
    if not (data / ORIGIN_NAME).exists():
        return None
    record = read_record(data / ORIGIN_NAME, REMEDY)
    del record["format_version"]
    return record


def seeds_of(data: Path) -> list[int]:
    """Return the seeds by which documents were dealt out on the way to a dataset."""
    return list((read_origin(data) or {}).get("seeds", []))


def is_made(out: Path, origin: dict[str, Any]) -> bool:
    """Return whether a dataset is whole that was made in the same way from the same one.

    Raises DataError if something else is there, or it lacks files.
    """
    if not out.exists():
        return False
    if read_origin(out) != origin:
        raise DataError(f"--out {out} exists and is something else: name a folder that does not.")
    if problems := shard_problems(out, read_manifest(out).shards):
        raise DataError("\n".join([*problems, f"Remove {out} and run the same command again."]))
    return True
