"""The JSON records of a dataset: sealed when written, and checked when read."""

import logging
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.files import CHECKSUM_KEY, has_its_seal, read_json_and_bytes
from data_prep.layout import ShardInfo

FORMAT_VERSION = 2
UNSEALED_VERSION = 1
"""Records of this format have no checksum of their own, and its shards none of their blocks."""

logger = logging.getLogger(__name__)


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Return a manifest, a marker or a sidecar, which is byte for byte what was written.

    Raises DataError when it is missing, was changed, or has a format that this code does not read.
    """
    record, content = read_json_and_bytes(path, remedy)
    version = record.get("format_version")
    if version == UNSEALED_VERSION and CHECKSUM_KEY not in record:
        _note_unsealed(path.parent)
        return record
    if version not in (UNSEALED_VERSION, FORMAT_VERSION):
        raise DataError(
            f"{path} has format version {version}, this program reads {UNSEALED_VERSION} and "
            f"{FORMAT_VERSION}. Prepare the dataset again, or use the program that wrote it."
        )
    if not has_its_seal(record, content):
        raise DataError(
            f"{path}: its own checksum differs, so it was changed by hand or damaged. {remedy}"
        )
    return record


@lru_cache
def _note_unsealed(folder: Path) -> None:
    """Say once for each folder that damage may go unnoticed."""
    logger.warning(
        "%s was written in format %d, without checksums of its records and of blocks of tokens: "
        "not every damage of it is noticed",
        folder,
        UNSEALED_VERSION,
    )


def record_to(kind: type[Any], record: Any, path: Path, remedy: str) -> Any:
    """Return the dataclass `kind` made from a JSON record.

    Raises DataError with the remedy unless the keys and plain types match exactly.
    """
    types = {field.name: field.type for field in fields(kind)}
    if not isinstance(record, dict) or set(record) != set(types):
        raise DataError(f"{path} does not hold the fields of {kind.__name__}. {remedy}")
    wrong = [name for name, value in record.items() if not isinstance(value, types[name])]  # type: ignore[arg-type]
    if wrong:
        raise DataError(f"{path}: wrong type of {', '.join(wrong)}. {remedy}")
    return kind(**record)


def record_to_shard(record: Any, version: int, path: Path, remedy: str) -> ShardInfo:
    """Return the shard that a JSON record describes.

    Raises DataError as `record_to` does, and when its files lie outside the dataset.
    """
    if version == UNSEALED_VERSION and isinstance(record, dict):
        record = {**record, "crcs_name": "", "crcs_bytes": 0, "crcs_sha256": ""}
    shard = record_to(ShardInfo, record, path, remedy)
    assert isinstance(shard, ShardInfo)
    for name in (shard.name, shard.ends_name, shard.crcs_name):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path} names {name}, which is outside the dataset. {remedy}")
    return shard
