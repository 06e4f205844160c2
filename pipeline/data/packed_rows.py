"""Where the tokens of `best_fit` rows lie, read from the index that `esolm prep pack` makes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.packing_index import pack_command, read_packing
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.open_files import OpenFile, OpenFiles

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Pieces of rows. rows, columns: where each goes; starts, sizes: its tokens. All are [P]."""

    rows: Int64Array
    columns: Int64Array
    starts: Int64Array
    sizes: Int64Array

    def places(self, length: int) -> Int64Array:
        """Where each goes in the rows end to end, of `length` tokens each."""
        return self.rows * length + self.columns


class PackedRows:
    """The rows of a split, by their number; opening them reads the record alone.

    Reading is by position (pread), so threads and forked processes may share an instance.
    """

    def __init__(self, dataset: TokenDataset, seq_len: int) -> None:
        """Raise DataError, which names the command that makes the index, if there is none.

        So it does for an index of other tokens; and for files that are missing or cut short, unless
        the dataset is read without checks.
        """
        self._folder, self._advice = dataset.path, pack_command(dataset.path, seq_len)
        packing = read_packing(dataset.path, dataset.manifest, seq_len)
        self._infos = infos = packing[dataset.split]
        assert len(infos) == len(dataset.shards)
        self._paths = [dataset.path / info.name for info in infos]
        if dataset.checked:
            self._check_sizes()
        sha256 = [info.sha256 for info in infos] if dataset.checked else None
        self._files = OpenFiles(self._paths, sha256)
        self._first_rows = np.cumsum([0, *(info.num_rows for info in infos)], dtype=np.int64)
        self._shard_starts = np.cumsum([0, *(s.num_tokens for s in dataset.shards)], dtype=np.int64)

    @property
    def num_rows(self) -> int:
        return int(self._first_rows[-1])

    def pieces(self, rows: Int64Array) -> Pieces:
        """Return the pieces of rows [N], those of a row together and from its left to its right.

        starts are places in the stream of the split. Raises DataError for an index that was changed
        or cut short.
        """
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        order = np.argsort(shards, kind="stable")
        numbers, first_of = np.unique(shards[order], return_index=True)
        found = [
            self._read(shard, rows[here] - self._first_rows[shard])
            for shard, here in zip(
                numbers.tolist(), np.split(order, first_of[1:].tolist()), strict=True
            )
        ]
        counts = np.concatenate([of_rows for of_rows, _ in found])
        starts, sizes = np.concatenate([pieces for _, pieces in found]).T
        into = np.repeat(order, counts)
        begins = np.cumsum(sizes) - sizes
        columns = begins - np.repeat(begins[np.cumsum(counts) - counts], counts)
        return Pieces(into, columns, starts + self._shard_starts[shards[into]], sizes)

    def _read(self, shard: int, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return how many pieces each row [N] of a shard has, and their (start, size), [P, 2]."""
        info, file = self._infos[shard], self._files.get(shard)
        width = np.dtype(info.dtype).itemsize
        begin = info.num_bytes - width * (info.num_rows + 1 + 2 * info.num_pieces)
        places = begin + width * rows
        bounds = self._integers(file, shard, places, np.full(len(rows), 2 * width)).reshape(-1, 2)
        counts = bounds[:, 1] - bounds[:, 0]
        places = begin + width * (info.num_rows + 1 + 2 * bounds[:, 0])
        return counts, self._integers(file, shard, places, 2 * width * counts).reshape(-1, 2)

    def _integers(
        self, file: OpenFile, shard: int, places: Int64Array, sizes: Int64Array
    ) -> Int64Array:
        """Return the integers that lie at byte places [N] of a file, so many bytes each."""
        pairs = zip(sizes.tolist(), places.tolist(), strict=True)
        content = b"".join([file.read(size, place) for size, place in pairs])
        if len(content) != sizes.sum():
            raise DataError(
                f"{self._paths[shard]} was cut short while in use. Delete it, and run "
                f"{self._advice}."
            )
        return np.frombuffer(content, dtype=self._infos[shard].dtype).astype(np.int64)

    def _check_sizes(self) -> None:
        problems = []
        for path, info in zip(self._paths, self._infos, strict=True):
            size = path.stat().st_size if path.exists() else -1
            if size != info.num_bytes:
                found = "it is missing" if size < 0 else f"{size} bytes found"
                problems.append(f"{path}: {info.num_bytes} bytes expected, {found}")
        if problems:
            raise DataError("\n".join([*problems, f"Run {self._advice}, which makes them again."]))
