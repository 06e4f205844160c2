"""Durable files: a file with its final name is complete, whenever the machine stops."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.errors import DataError, EsolmError

HASH_BLOCK_BYTES = 1 << 20
CHECKSUM_KEY = "checksum"
"""The key of a sealed record that holds the checksum of all the others."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError within say which file it is about: that of a write or a sync does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn an error of the file system into one message: what, where and what to do.

    Its exit code is not that of bad input: there may be space, or a right, the next time.
    """
    try:
        yield
    except BrokenPipeError:  # who reads the output has gone
        raise
    except OSError as error:
        place = error.filename or "a file"
        raise EsolmError(
            f"{place} cannot be read or written ({error.strerror or error}). Free space there, "
            "mend its rights or name another folder, and run the same command again: what is "
            "finished is skipped."
        ) from error


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


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that either has all of its content or does not exist (tmp, fsync, rename).

    Several processes may write the same file at once; the content of the last one stays.
    """
    temporary = temporary_path(path)
    try:
        with naming(path), open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record as indented JSON with sorted keys, atomically."""
    write_atomic(path, _bytes_of(record))


def _bytes_of(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _sealed(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, CHECKSUM_KEY: fingerprint_of(record)}


def write_sealed(path: Path, record: dict[str, Any]) -> None:
    """Write a record with a checksum over all of it, as JSON, atomically."""
    write_json(path, _sealed(record))


def has_its_seal(record: dict[str, Any], content: bytes) -> bool:
    """Return whether a file's content is, byte for byte, what `write_sealed` wrote.

    The bytes are compared, not only the checksum, because a changed byte may leave the JSON the
    same: a blank, the case of an escape, a key that stands there twice.
    """
    rest = {key: value for key, value in record.items() if key != CHECKSUM_KEY}
    return content == _bytes_of(_sealed(rest))


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


def hashes_of_files(directory: Path) -> dict[str, str]:
    """Return the sha256 of each file of a directory by its name, without hidden and temporary ones.

    What another program left behind when it was killed ends in .tmp.
    """
    files = (path for path in directory.iterdir() if path.is_file() and path.name[0] != ".")
    return {path.name: sha256_of_file(path) for path in files if path.suffix != ".tmp"}


def fingerprint_of(record: object) -> str:
    """Return the sha256 of a JSON-serialisable record in its canonical form."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
