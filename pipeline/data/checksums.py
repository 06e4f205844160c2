"""The checksums of shards: proved when they are first asked for, and kept if there is room.

`crc32` is that of zlib; isal computes the same in a seventh of the time where it is installed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import CHECKSUM_BYTES, ShardInfo
from esolm.pipeline.data.open_files import ADVICE, OpenFiles
from esolm.pipeline.data.remote_dataset import RemoteDataset

__all__ = ["Checksums", "DataFolder", "crc32"]

Int64Array = npt.NDArray[np.int64]
DataFolder = Path | RemoteDataset
"""Where a dataset lies."""

KEPT_BYTES = 1 << 26
"""Those of 17 G tokens; the checksums of a larger dataset are read as they are needed."""


class Checksums:
    """The checksums of the parts of several shards; safe to use from several threads."""

    def __init__(self, shards: Sequence[tuple[DataFolder, ShardInfo]]) -> None:
        """shards: each with the place of its dataset.

        The sha256 of a file is looked at when it is first asked for: a shard and its checksums may
        both be another dataset's.
        """
        self._names = [f"{data}/{shard.crc_name}" for data, shard in shards]
        openers = {
            number: partial(data.file, shard.crc_name, shard.crc_sha256)
            for number, (data, shard) in enumerate(shards)
            if isinstance(data, RemoteDataset)
        }
        sha256 = [shard.crc_sha256 for _, shard in shards]
        self._files = OpenFiles(list(map(Path, self._names)), sha256, openers)
        sizes = [shard.crc_bytes for _, shard in shards]
        counts = np.array(sizes, dtype=np.int64) // CHECKSUM_BYTES
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        fits = sum(sizes) <= KEPT_BYTES
        self._kept = np.empty(self._starts[-1], dtype="<u4") if fits else None
        self._is_kept = np.zeros(len(shards), dtype=bool)
        self._lock = Lock()

    def of(self, shards: Int64Array, parts: Int64Array) -> npt.NDArray[np.uint32]:
        """Return the checksum of each part [N] of a shard [N], by its number; shards in order.

        Raises DataError if a file is another than the manifest's, or was cut short since.
        """
        if self._kept is not None:
            if not self._is_kept[shards].all():
                self._keep(np.unique(shards[~self._is_kept[shards]]).tolist())
            return self._kept[self._starts[shards] + parts]
        content = []
        for shard in np.unique(shards).tolist():
            read = self._files.get(shard).read
            mine = parts[np.searchsorted(shards, shard) : np.searchsorted(shards, shard, "right")]
            content += [read(CHECKSUM_BYTES, CHECKSUM_BYTES * part) for part in mine.tolist()]
            if content and len(content[-1]) != CHECKSUM_BYTES:
                raise self._cut_short(shard)
        return np.frombuffer(b"".join(content), dtype="<u4")

    def _keep(self, shards: list[int]) -> None:
        assert self._kept is not None
        for shard in shards:
            start, end = self._starts[shard : shard + 2]
            content = self._files.get(shard).read(CHECKSUM_BYTES * int(end - start), 0)
            if len(content) != CHECKSUM_BYTES * (end - start):
                raise self._cut_short(shard)
            with self._lock:
                self._kept[start:end] = np.frombuffer(content, dtype="<u4")
                self._is_kept[shard] = True

    def _cut_short(self, shard: int) -> DataError:
        return DataError(f"{self._names[shard]} was cut short while in use. {ADVICE}")
