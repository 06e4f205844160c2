"""Durable files: a file with its final name is complete, whenever the machine stops."""

import glob
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from esolm.data_prep.errors import DataError

HASH_BLOCK_BYTES = 1 << 20


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError of writing name the file, which that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def probe_writing(directory: Path, num_bytes: int) -> None:
    """Write a file of so many bytes to the disk and remove it.

    Raises OSError, which names the directory, if the disk does not take it.
    """
    with naming(directory), tempfile.NamedTemporaryFile(dir=directory, prefix=".probe_") as file:
        file.write(bytes(num_bytes))
        file.flush()
        os.fsync(file.fileno())


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory durable, so that a rename outlasts a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` that no other writer of the same file uses.

    The name is random, because array tasks may write the same file at once, and on different
    machines or in different containers even under the same process id.
    """
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of a file left beside it. Nobody may be writing it."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def refuse_taken(directory: Path, marks: Collection[str], kind: str) -> None:
    """Raise DataError if a directory holds one of the names that mark it as something else's.

    kind: what was to be written there.
    """
    found = [name for name in marks if (directory / name).exists()]
    if found:
        raise DataError(
            f"--out {directory} is no place for a {kind}: it holds {found[0]}, which is part of "
            "something else. Name a directory of its own."
        )


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that either has all of its content or does not exist (tmp, fsync, rename).

    Several processes may write the same file at once; the content of the last one stays.
    """
    temporary = temporary_path(path)
    try:
        with naming(path), open(temporary, "wb") as stream:
            stream.write(content)
            commit_stream(stream, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def commit_stream(stream: IO[Any], temporary: Path, path: Path) -> None:
    """Close a file and make what was written durable under its final name."""
    with naming(path):
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
    os.replace(temporary, path)
    fsync_directory(path.parent)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as indented JSON with sorted keys, atomically."""
    write_atomic(path, json_bytes(record))


def json_bytes(record: dict[str, Any]) -> bytes:
    """Return the content of the file that `write_json` writes."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises DataError, whose message ends with the remedy, when the file is missing, damaged or
    unreadable.
    """
    return read_json_and_bytes(path, remedy)[0]


def read_json_and_bytes(path: Path, remedy: str) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object in a file and the bytes of the file; raises as `read_json` does."""
    try:
        content = path.read_bytes()
        record = json.loads(content)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}). {remedy}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {remedy}") from None
    if not isinstance(record, dict):
        raise DataError(f"{path} does not hold a JSON object. {remedy}")
    return record, content


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits, in constant memory."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_problem(
    path: Path, num_bytes: int, sha256: str, on_bytes: Callable[[int], None]
) -> str | None:
    """Say what is wrong with a file of a dataset, or return None. on_bytes: after each read."""
    digest = hashlib.sha256()
    found_bytes = 0
    try:
        with open(path, "rb", buffering=0) as stream:
            while block := stream.read(HASH_BLOCK_BYTES):
                digest.update(block)
                found_bytes += len(block)
                on_bytes(len(block))
    except OSError as error:
        return f"{path}: missing or unreadable ({error.strerror})"
    if found_bytes != num_bytes:
        kind = "cut short" if found_bytes < num_bytes else "too long"
        return f"{path}: {kind}, {num_bytes} bytes expected, {found_bytes} found"
    if digest.hexdigest() != sha256:
        return f"{path}: changed, sha256 {sha256} expected, {digest.hexdigest()} found"
    return None


def fingerprint_of(record: object) -> str:
    """Return the sha256 of a JSON-serialisable record in its canonical form."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
