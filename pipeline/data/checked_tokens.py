"""The tokens of shards, many parts at a time, each compared with its checksum as it is read."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esolm.data_prep.layout import CHECKED_TOKENS, MEMBER_TOKENS, ShardInfo
from esolm.data_prep.manifest import repair_advice
from esolm.pipeline.data.checksums import Checksums, DataFolder, crc32
from esolm.pipeline.data.damage import CUT_SHORT, DamagedPart, DamagedTokensError
from esolm.pipeline.data.shard_files import ShardFiles

Int64Array = npt.NDArray[np.int64]
TokenArray = npt.NDArray[Any]


class CheckedTokens:
    """Shards of one dataset or of several, read at any place of any member.

    checked: whether tokens are compared with the shards' checksums, if all of them have some.
    """

    def __init__(
        self, shards: Sequence[tuple[DataFolder, ShardInfo]], dtype: str, checked: bool
    ) -> None:
        """shards: each with the place of its dataset."""
        self.dtype = np.dtype(dtype)
        self._folders = [data for data, _ in shards]
        self._names = [f"{data}/{shard.name}" for data, shard in shards]
        self._checksums: Checksums | None = None
        if checked and all(shard.crc_name for _, shard in shards):
            self._checksums = Checksums(shards)
        self._files = ShardFiles(shards, self.dtype.itemsize, self._checksums)
        self._local = threading.local()
        self._offsets = np.array([s.member_offset for _, s in shards], dtype=np.int64)
        self._strides = np.array([s.member_stride for _, s in shards], dtype=np.int64)

    def damaged(self, shard: int, member: int, within: int, problem: str) -> DamagedPart:
        """Return what is said of damage from a token of a member on."""
        start = int(self._offsets[shard]) + member * int(self._strides[shard])
        byte = start + within * self.dtype.itemsize
        advice = advice_for(self._folders[shard])
        return DamagedPart(self._names[shard], member, byte, problem, advice)

    def read(
        self, shards: Int64Array, members: Int64Array, within: Int64Array, sizes: Int64Array,
        ends: Int64Array,
    ) -> tuple[TokenArray, Int64Array]:  # fmt: skip
        """Return (tokens [N, W], where in them each part begins [N]), for use until the next call.

        Part n is the sizes[n] tokens from place within[n] of its member on, which ends at ends[n].
        Raises DamagedTokensError for parts that are not what was written, or lie where a file that
        was cut short has ended, and DataError and EsolmError as `ShardFiles.fill`.
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
        read = np.array(self._files.fill(numbers, views, places), dtype=np.int64)
        if (read < stops - begins).any():
            short = order[read < stops - begins]
            raise DamagedTokensError(
                self.damaged(int(shards[n]), int(members[n]), int(first[n]), CUT_SHORT)
                for n in short.tolist()
            )
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
        problem = f"the next {CHECKED_TOKENS} tokens are not what was written"
        wrong = zip(of_shard[differ].tolist(), numbers[differ].tolist(), strict=True)
        parts_of_member = MEMBER_TOKENS // CHECKED_TOKENS
        raise DamagedTokensError(
            self.damaged(
                n, part // parts_of_member, part % parts_of_member * CHECKED_TOKENS, problem
            )
            for n, part in wrong
        )


def advice_for(data: DataFolder) -> str:
    """Return the sentence that tells a user what to do about a dataset's damage."""
    if isinstance(data, Path):
        return repair_advice(data)
    return "`esolm prep verify` where the dataset lies names all damage; put whole files there."
