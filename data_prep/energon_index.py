"""What Megatron-Energon opens a folder of tars by, as its own `energon prepare` writes it.

Every member of a tar is a sample, with up to 65,536 tokens as bytes under `u16` or `u32`. Where
each of them lies is known without reading a tar. Tested with Energon 7.4.
"""

import errno
import json
import os
import sqlite3
import struct
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from esolm.data_prep.files import commit_stream, naming, temporary_path, write_atomic
from esolm.data_prep.layout import MEMBER_TOKENS, TAR_BLOCK_BYTES, ShardInfo
from esolm.data_prep.manifest import ENERGON_DIRECTORY, Manifest

VERSION = "7.4.1"
SPLITS = {"train": "train", "valid": "val"}
"""What it calls our splits."""
DATASET = """__module__: megatron.energon
__class__: CrudeWebdataset
"""
TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE,
    sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER);
"""
INDICES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq
    ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(
    tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


def has_energon_index(data: Path) -> bool:
    """Return whether a dataset has one, of its present or of earlier tars."""
    return (data / ENERGON_DIRECTORY).exists()


def write_energon_index(data: Path, manifest: Manifest) -> None:
    """Write `.nv-meta` and beside each tar `.tar.idx`, each file atomically, split.yaml last."""
    folder = data / ENERGON_DIRECTORY
    folder.mkdir(exist_ok=True)
    (folder / "split.yaml").unlink(missing_ok=True)
    for shard in manifest.shards:
        offsets = _offsets(shard)
        write_atomic(data / f"{shard.name}.idx", struct.pack(f"<{len(offsets)}Q", *offsets))
    _write_database(folder / "index.sqlite", manifest)
    write_atomic(
        folder / "index.uuid",
        str(uuid.uuid5(uuid.NAMESPACE_OID, manifest.fingerprint)).encode(),
    )
    counts = {shard.name: len(_offsets(shard)) - 1 for shard in manifest.shards}
    info = json.dumps({"energon_version": VERSION, "shard_counts": counts}, indent=2).encode()
    for name in (".info.json", ".info.yaml"):  # the second is of former versions; JSON is YAML
        write_atomic(folder / name, info + b"\n")
    if not (folder / "dataset.yaml").exists():  # it may say how the samples are to be cooked
        write_atomic(folder / "dataset.yaml", DATASET.encode())
    write_atomic(folder / "split.yaml", "".join(_split_lines(manifest)).encode())


def _split_lines(manifest: Manifest) -> Iterator[str]:
    yield "split_parts:\n"
    for split, name in SPLITS.items():
        shards = manifest.splits.get(split, [])
        yield f"  {name}:{'' if shards else ' []'}\n"
        yield from (f"  - {shard.name}\n" for shard in shards)
    yield "exclude: []\n"


def _offsets(shard: ShardInfo) -> list[int]:
    """Return where each member of a tar begins, its header included, and where the last one ends.

    Behind it are two blocks of zeros.
    """
    num_members = -(-shard.num_tokens // MEMBER_TOKENS)
    begins = [number * shard.member_stride for number in range(num_members)]
    return [*begins, shard.num_bytes - 2 * TAR_BLOCK_BYTES]


def _write_database(path: Path, manifest: Manifest) -> None:
    temporary = temporary_path(path)
    itemsize = int(manifest.dtype[-1])
    try:
        with naming(path):
            database = sqlite3.connect(temporary)
            try:
                database.executescript(TABLES)
                for number, shard in enumerate(manifest.shards):
                    _insert(database, number, shard, itemsize)
                database.executescript(INDICES)
                database.commit()
            finally:
                database.close()
            with open(temporary, "rb+") as stream:
                commit_stream(stream, temporary, path)
    except sqlite3.OperationalError as error:
        # SQLite has numbers of its own for what the system says.
        is_full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        number = errno.ENOSPC if is_full else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        for left in (temporary, Path(f"{temporary}-journal")):
            left.unlink(missing_ok=True)


def _insert(database: sqlite3.Connection, number: int, shard: ShardInfo, itemsize: int) -> None:
    stem = Path(shard.name).stem
    offsets = _offsets(shard)
    samples = (
        (number, f"{stem}-{index:06d}", index, begin, end - begin)
        for index, (begin, end) in enumerate(pairwise(offsets))
    )
    parts = (
        (
            number,
            index,
            f"u{8 * itemsize}",
            begin + shard.member_offset,
            itemsize * min(MEMBER_TOKENS, shard.num_tokens - index * MEMBER_TOKENS),
        )
        for index, begin in enumerate(offsets[:-1])
    )
    database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", samples)
    database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", parts)
