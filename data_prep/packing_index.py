"""The rows that `packing` makes of a dataset's documents, kept beside its tokens.

An array of a shard holds, one after the other, the R + 1 first pieces of its rows and the (start,
size) of its P pieces, as little-endian integers of 32 bits, or of 64 if the shard is that long. A
record names the arrays of all shards; it is written last.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from esolm.data_prep.document_ends import ends_of
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import file_problem, write_atomic
from esolm.data_prep.layout import ShardInfo
from esolm.data_prep.manifest import (
    PACKING_DIRECTORY,
    Manifest,
    read_manifest,
    record_to,
    repair_advice,
)
from esolm.data_prep.packing import PackedShard, pack
from esolm.data_prep.records import read_record, write_record


@dataclass(frozen=True)
class PackedInfo:
    """The array of a shard's rows.

    num_cut: see `PackedShard`; num_cut_as_it_is: the documents in more than one row if the shard
    were cut as it is. ends_sha256: of the ends that the rows were made from.
    """

    name: str
    num_bytes: int
    sha256: str
    dtype: str
    num_rows: int
    num_pieces: int
    num_cut: int
    num_cut_as_it_is: int
    ends_sha256: str


@dataclass(frozen=True)
class PackJob:
    """What `esolm prep pack` makes: an array for every length and shard.

    fingerprint: of the dataset.
    """

    data: Path
    lengths: tuple[int, ...]
    fingerprint: str

    @classmethod
    def of(cls, data: Path, lengths: tuple[int, ...]) -> "PackJob":
        """Return the job for the dataset as it is now; raises as `read_manifest` does."""
        return cls(data, lengths, read_manifest(data).fingerprint)

    @property
    def manifest(self) -> Manifest:
        return _manifest_of(self.data, self.fingerprint)

    @property
    def num_tasks(self) -> int:
        return len(self.lengths) * len(self.manifest.shards)

    def task(self, number: int) -> tuple[int, ShardInfo]:
        """The length and the shard of a task."""
        shards = self.manifest.shards
        return self.lengths[number // len(shards)], shards[number % len(shards)]


@cache
def _manifest_of(data: Path, fingerprint: str) -> Manifest:
    """A worker reads it once, not for each of its shards."""
    manifest = read_manifest(data)
    if manifest.fingerprint != fingerprint:
        raise DataError(f"{data} was merged anew meanwhile. Run the same command again.")
    return manifest


def pack_command(data: Path, length: int) -> str:
    """Return the command that makes the rows of a length."""
    return f"`esolm prep pack {data} --seq-len {length}`"


def record_path(data: Path, length: int) -> Path:
    """Return where the record of a length lies."""
    return data / PACKING_DIRECTORY / f"best_fit-{length}.json"


def _sidecar(data: Path, length: int, shard: ShardInfo) -> Path:
    folder = record_path(data, length).with_suffix("")
    return folder / f"{Path(shard.name).stem}.json"


def is_packed(job: PackJob, number: int) -> bool:
    """Return whether the array of a task is there, made from the shard that is there."""
    return _packed_info(job.data, *job.task(number)) is not None


def _packed_info(data: Path, length: int, shard: ShardInfo) -> PackedInfo | None:
    path = _sidecar(data, length, shard)
    if not path.exists():
        return None
    try:
        info = _info_of(read_record(path, "")["shard"], path, "")
    except (DataError, KeyError):
        return None  # packing the shard again writes the same bytes
    array = data / info.name
    whole = array.exists() and array.stat().st_size == info.num_bytes
    return info if whole and info.ends_sha256 == shard.ends_sha256 else None


def pack_task(job: PackJob, number: int, on_tokens: Callable[[int], None]) -> dict[str, int]:
    """Write the array of a task, its sidecar last; on_tokens: is told the tokens of the shard.

    Raises DataError naming damaged ends.
    """
    length, shard = job.task(number)
    ends_name, num_bytes, sha256 = shard.ends_name, shard.ends_bytes, shard.ends_sha256
    problem = file_problem(job.data / ends_name, num_bytes, sha256, lambda _: None)
    if problem:
        raise DataError(f"{problem}. {repair_advice(job.data)}")
    ends = ends_of(job.data, shard)
    packed = pack(ends, length)
    dtype = "<u4" if shard.num_tokens < 1 << 32 else "<u8"
    content, sidecar = _array_of(packed, dtype), _sidecar(job.data, length, shard)
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    array = sidecar.with_suffix(".npy")
    write_atomic(array, content)
    info = PackedInfo(
        name=array.relative_to(job.data).as_posix(),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        dtype=dtype,
        num_rows=packed.num_rows,
        num_pieces=len(packed.starts),
        num_cut=packed.num_cut,
        num_cut_as_it_is=int(((ends - 1) // length > np.r_[0, ends[:-1]] // length).sum()),
        ends_sha256=shard.ends_sha256,
    )
    write_record(sidecar, {"shard": asdict(info)})
    on_tokens(shard.num_tokens)
    return {"rows": packed.num_rows}


def _array_of(packed: PackedShard, dtype: str) -> bytes:
    pieces = np.stack([packed.starts, packed.sizes], axis=1).ravel()
    stream = io.BytesIO()
    np.save(stream, np.concatenate([packed.firsts, pieces]).astype(dtype))
    return stream.getvalue()


def write_packing(job: PackJob, length: int) -> dict[str, list[PackedInfo]]:
    """Write the record of a length, whose arrays are all there, and return what it holds."""
    found = {
        split: [_packed_info(job.data, length, shard) for shard in shards]
        for split, shards in job.manifest.splits.items()
    }
    infos = {split: [info for info in each if info] for split, each in found.items()}
    assert all(len(infos[split]) == len(each) for split, each in found.items())
    splits = {split: [asdict(info) for info in each] for split, each in infos.items()}
    content = {"fingerprint": job.manifest.fingerprint, "seq_len": length, "splits": splits}
    write_record(record_path(job.data, length), content)
    return infos


def read_packing(data: Path, manifest: Manifest, length: int) -> dict[str, list[PackedInfo]]:
    """Return the arrays of the shards of each split, in order.

    Raises DataError, which names the command, if there is no record, or one of other tokens.
    """
    path, make = record_path(data, length), f"Make it: {pack_command(data, length)}."
    if not path.exists():
        raise DataError(f"{data} has no index of best_fit rows of {length} tokens. {make}")
    record = read_record(path, make)
    known = (manifest.fingerprint, manifest.former_fingerprint)
    if record.get("fingerprint") not in known or record.get("seq_len") != length:
        raise DataError(f"{path} is of other tokens or rows than {data} has now. {make}")
    try:
        splits = {
            split: [_info_of(each, path, make) for each in record["splits"][split]]
            for split in manifest.splits
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}). {make}") from error
    return splits


def _info_of(record: Any, path: Path, remedy: str) -> PackedInfo:
    info = record_to(PackedInfo, record, path, remedy)
    assert isinstance(info, PackedInfo)
    if Path(info.name).is_absolute() or ".." in Path(info.name).parts:
        raise DataError(f"{path} names {info.name}, which is outside the dataset. {remedy}")
    return info


def lengths_of(data: Path) -> list[int]:
    """Return the lengths of rows that a dataset has a record of."""
    paths = (data / PACKING_DIRECTORY).glob("best_fit-*.json")
    found = (path.stem.rpartition("-")[2] for path in paths)
    return sorted(int(length) for length in found if length.isdigit())


def packed_files(data: Path, manifest: Manifest, length: int) -> list[tuple[str, int, str]]:
    """Return (name, bytes, sha256) of every array of a length; raises as `read_packing` does."""
    packing = read_packing(data, manifest, length)
    return [(each.name, each.num_bytes, each.sha256) for s in packing.values() for each in s]
