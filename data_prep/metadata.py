"""What is kept of documents beside their tokens: a line of JSON for each, in the shard's order."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esolm.data_prep.compression import open_decompressed
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import commit_stream, naming, temporary_path
from esolm.data_prep.formats import MAY_BE_MISSING
from esolm.data_prep.layout import ShardInfo
from esolm.data_prep.manifest import repair_advice

if TYPE_CHECKING:
    from esolm.data_prep.documents import Document

METADATA_SUFFIX = ".metadata.jsonl.zst"
PLACE_ALONE = "."
"""In place of fields: nothing but the id and the place of each document."""
SEPARATOR = ","


def metadata_keys(given: Sequence[str]) -> tuple[str, ...]:
    """Return the fields named by options, each of which may name several, by commas."""
    return tuple(name for each in given for name in each.split(SEPARATOR))


def metadata_problems(keys: Sequence[str]) -> list[str]:
    """Say what is wrong with the fields that are to be kept."""
    names = [key.removesuffix(MAY_BE_MISSING) for key in keys]
    problems = []
    if not all(name.strip() for name in names):
        problems.append("--metadata names a field without a name")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"--metadata names {', '.join(twice)} more than once")
    if wrong := [name for name in names if SEPARATOR in name]:
        problems.append(f"--metadata: the name {wrong[0]} has a comma, which ends names")
    return problems


def line_of(document: "Document") -> bytes:
    """Return what is kept of a document, as a line of JSON."""
    place = {**document.raw.place.to_record(), "file": document.source}
    record = {"id": document.id, **place, "metadata": dict(document.metadata)}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


class MetadataFile:
    """The lines of a shard that is being written; the file exists only when it is whole."""

    def __init__(self, path: Path) -> None:
        from zstandard import ZstdCompressor

        self.path = path
        self._temporary = temporary_path(path)
        self._stream = open(self._temporary, "wb")  # noqa: SIM115
        self._compressor = ZstdCompressor().compressobj()
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, line: bytes) -> None:
        """Add a line, with its end."""
        self._write(self._compressor.compress(line))

    def _write(self, content: bytes) -> None:
        with naming(self.path):
            self._stream.write(content)
        self._digest.update(content)
        self._num_bytes += len(content)

    def commit(self) -> tuple[int, str]:
        """Make the file durable under its final name; return its bytes and its sha256."""
        self._write(self._compressor.flush())
        commit_stream(self._stream, self._temporary, self.path)
        return self._num_bytes, self._digest.hexdigest()

    def discard(self) -> None:
        """Close and remove an unfinished file."""
        with contextlib.suppress(OSError):  # what was not written yet need not be
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


def metadata_lines(data: Path, shard: ShardInfo) -> Iterator[bytes]:
    """Yield the lines of a shard's documents, in order.

    Raises DataError naming the file if it is damaged or holds another number of lines.
    """
    path, count = data / shard.metadata_name, 0
    try:
        with open_decompressed(path) as stream:
            for line in stream:
                count += 1
                yield line
    except DataError as error:
        raise DataError(f"{path}: {error.__cause__}. {repair_advice(data)}") from error
    if count != shard.num_documents:
        raise DataError(
            f"{path} holds {count:,} lines, not one for each of {shard.num_documents:,} documents. "
            f"{repair_advice(data)}"
        )
