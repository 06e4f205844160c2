"""The tokens of shards, many parts at a time, each compared with its checksum as it is read."""

import os
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import CHECKED_TOKENS, MEMBER_TOKENS, ShardInfo
from esolm.data_prep.manifest import repair_advice
from esolm.pipeline.data.checksums import Checksums, crc32
from esolm.pipeline.data.open_files import OpenFiles

Int64Array = npt.NDArray[np.int64]
TokenArray = npt.NDArray[Any]


class CheckedTokens:
    """Shards of one dataset or of several, read at any place of any member.

    checked: whether tokens are compared with the shards' checksums, if all of them have some.
    """

    def __init__(self, shards: Sequence[tuple[Path, ShardInfo]], dtype: str, checked: bool) -> None:
        """shards: each with the folder of its dataset."""
        self.dtype = np.dtype(dtype)
        self.paths = [data / shard.name for data, shard in shards]
        self._folders = [data for data, _ in shards]
        self._files = OpenFiles(self.paths)
        self._checksums: Checksums | None = None
        if checked and all(shard.crc_name for _, shard in shards):
            paths = [data / shard.crc_name for data, shard in shards]
            sizes = [shard.crc_bytes for _, shard in shards]
            self._checksums = Checksums(paths, sizes, [shard.crc_sha256 for _, shard in shards])
        self._local = threading.local()
        self._offsets = np.array([s.member_offset for _, s in shards], dtype=np.int64)
        self._strides = np.array([s.member_stride for _, s in shards], dtype=np.int64)

    def offset(self, shard: int, member: int, within: int) -> int:
        """The byte of a token of a member in its shard."""
        start = int(self._offsets[shard]) + member * int(self._strides[shard])
        return start + within * self.dtype.itemsize

    def advice(self, shard: int) -> str:
        """What a user does about damage of a shard."""
        return repair_advice(self._folders[shard])

    def read(
        self, shards: Int64Array, members: Int64Array, within: Int64Array, sizes: Int64Array,
        ends: Int64Array,
    ) -> tuple[TokenArray, Int64Array]:  # fmt: skip
        """Return (tokens [N, W], where in them each part begins [N]), for use until the next call.

        Part n is the sizes[n] tokens from place within[n] of its member on, which ends at ends[n].
        Raises DataError for the first part that is not what was written, and for a file that was
        cut short while in use.
        """
        first, last = within, within + sizes
        if self._checksums is not None:
            first = within // CHECKED_TOKENS * CHECKED_TOKENS
            last = np.minimum(-(-last // CHECKED_TOKENS) * CHECKED_TOKENS, ends)
        size = self.dtype.itemsize
        tokens = self._buffer(len(shards), int((last - first).max(initial=1)))
        # One shard after the other, so that each is asked for once and no more are held open.
        order = np.argsort(shards, kind="stable")
        offsets = self._offsets[shards] + members * self._strides[shards] + first * size
        begins = order * (tokens.shape[1] * size)
        stops = begins + ((last - first) * size)[order]
        content: memoryview = memoryview(tokens).cast("B")  # type: ignore[arg-type]
        numbers, places = shards[order], offsets[order].tolist()
        views = [content[a:b] for a, b in zip(begins.tolist(), stops.tolist(), strict=True)]
        for group in _groups(numbers):
            self._fill(int(numbers[group.start]), views[group], places[group])
        if self._checksums is not None:
            parts = ((members * MEMBER_TOKENS + first) // CHECKED_TOKENS)[order]
            self._compare(content, begins, stops, numbers, parts)
        return tokens, within - first

    def _buffer(self, num_rows: int, width: int) -> TokenArray:
        """Return memory of this thread's own, which the next call uses again: fresh pages cost."""
        held = getattr(self._local, "held", None)
        if held is None or len(held) < num_rows * width:
            held = self._local.held = np.empty(num_rows * width, dtype=self.dtype)
        buffer: TokenArray = held[: num_rows * width].reshape(num_rows, width)
        return buffer

    def _fill(self, shard: int, views: list[memoryview], offsets: list[int]) -> None:
        file, preadv = self._files.get(shard), os.preadv
        descriptor = file.descriptor  # open for as long as `file` is held
        pairs = zip(views, offsets, strict=True)
        found = [preadv(descriptor, (view,), offset) for view, offset in pairs]
        if found == list(map(len, views)):
            return
        short = next(n for n, view in enumerate(views) if found[n] != len(view))
        raise DataError(
            f"{self.paths[shard]}: {len(views[short])} bytes expected at byte {offsets[short]}, "
            f"{found[short]} found: it was cut short while in use. {self.advice(shard)}"
        )

    def _compare(
        self, content: memoryview, begins: Int64Array, stops: Int64Array, shards: Int64Array,
        parts: Int64Array,
    ) -> None:  # fmt: skip
        """Compare what lies from begins to stops [N] in the content with its checksums.

        shards [N]: in order. parts [N]: the number in its shard of the first checked part of each.
        """
        assert self._checksums is not None
        step = CHECKED_TOKENS * self.dtype.itemsize
        counts = -(-(stops - begins) // step)
        of_part = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(of_part)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = begins[of_part] + number * step
        ends = np.minimum(starts + step, stops[of_part])
        found = [crc32(content[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        of_shard, numbers = shards[of_part], parts[of_part] + number
        stated = self._checksums.of(of_shard, numbers)
        differ = np.array(found, dtype=np.uint32) != stated
        if not differ.any():
            return
        wrong = int(np.argmax(differ))
        shard, part = int(of_shard[wrong]), int(numbers[wrong])
        member, within = divmod(part * CHECKED_TOKENS, MEMBER_TOKENS)
        raise DataError(
            f"{self.paths[shard]}, member {member}, byte {self.offset(shard, member, within)}: the "
            f"next {CHECKED_TOKENS} tokens are not what was written. {self.advice(shard)}"
        )


def _groups(numbers: Int64Array) -> list[slice]:
    """Returns the slices of equal neighbours."""
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [slice(begin, end) for begin, end in pairwise(bounds) if begin < end]
