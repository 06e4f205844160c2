"""`export.json`: what a bundle is, the results of its gate and the sha256 of every file."""

import json
from pathlib import Path
from typing import Any

from esolm.data_prep.files import fingerprint_of, sha256_of_file
from esolm.pipeline.errors import ExportError

NAME = "export.json"


def write_manifest(directory: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Adds the hashes of all other files to a record, writes it as export.json and returns it."""
    files = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of_file(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    record = {**record, "files": files}
    record["digest"] = fingerprint_of(record)
    (directory / NAME).write_bytes(_canonical(record))
    return record


def verify_bundle(directory: Path) -> dict[str, Any]:
    """Checks that a bundle is undamaged and returns what its export.json holds.

    Raises ExportError, which names every file that is missing, altered or not of the bundle. It
    finds a changed byte in any file, export.json itself included.
    """
    path = directory / NAME
    if not path.is_file():
        raise ExportError(f"{directory} is no bundle: it has no {NAME}; make one with esolm export")
    content = path.read_bytes()
    try:
        record: dict[str, Any] = json.loads(content)
        digest = record.pop("digest")
        intact = digest == fingerprint_of(record)
        intact = intact and content == _canonical({**record, "digest": digest})
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise ExportError(f"{path} was altered after the export; export the checkpoint again")
    problems = _damage(directory, record["files"])
    if problems:
        raise ExportError(f"{directory} is damaged: {'; '.join(problems)}; export it again")
    return record


def _damage(directory: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    problems = []
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}")
        elif sha256_of_file(path) != expected["sha256"]:
            problems.append(f"{name} has another sha256 than recorded")
    present = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    problems += [f"{name} is not of the bundle" for name in sorted(present - {*files, NAME})]
    return problems


def _canonical(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
