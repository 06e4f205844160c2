"""Records that notice every change: JSON objects that carry a checksum of their own content."""

import logging
from pathlib import Path
from typing import Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fingerprint_of, json_bytes, read_json_and_bytes, write_json

FORMAT_VERSION = 2
UNSEALED_VERSION = 1
"""The format before, whose records have no checksum, and whose tokens none for parts of a shard."""
SEAL = "checksum"

logger = logging.getLogger(__name__)


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record in the present format, with its checksum, atomically."""
    content = {"format_version": FORMAT_VERSION, **content}
    write_json(path, _sealed(content))


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, SEAL: fingerprint_of(content)}


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Return the content of a record. One of the format before is taken as it is.

    Raises DataError, whose message ends with the remedy, when the file is missing, unreadable, of
    another format, or not what was written.
    """
    content, found = read_json_and_bytes(path, remedy)
    version, seal = content.get("format_version"), content.pop(SEAL, None)
    if version not in (UNSEALED_VERSION, FORMAT_VERSION):
        raise DataError(
            f"{path} has format version {version}, this program reads {UNSEALED_VERSION} and "
            f"{FORMAT_VERSION}. Prepare the dataset again, or use the program that wrote it."
        )
    is_unsealed = version == UNSEALED_VERSION and seal is None
    # The bytes are compared, for a changed byte may leave the JSON the same: a blank, the case of
    # an escape, a key that stands there twice.
    if not is_unsealed and found != json_bytes(_sealed(content)):
        raise DataError(
            f"{path} is not what was written: its content does not give its checksum, so it was "
            f"changed by hand or damaged. {remedy}"
        )
    return content
