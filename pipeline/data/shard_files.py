"""The tars of shards, on disks of this machine and at addresses, read at many places at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import wait
from enum import Enum
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.layout import CHECKED_TOKENS, MEMBER_TOKENS, ShardInfo
from esolm.pipeline.data.checksums import Checksums, DataFolder, crc32
from esolm.pipeline.data.open_files import OpenFiles
from esolm.pipeline.data.remote_dataset import RemoteDataset

Int64Array = npt.NDArray[np.int64]

Wanted = list[tuple[int, memoryview, int]]
"""Pieces of one member: (number of the piece, where it goes, its first byte in the member)."""


class Kept(Enum):
    """How pieces of a member lie in the cache."""

    SOUND, DAMAGED, NOT = range(3)


class ShardFiles:
    """The tars of datasets that may lie in different places; safe for threads and after a fork."""

    def __init__(
        self,
        shards: Sequence[tuple[DataFolder, ShardInfo]],
        itemsize: int,
        checksums: Checksums | None,
    ) -> None:
        """itemsize: bytes of a token. checksums: of all shards, if they are looked at."""
        self._shards, self._itemsize, self._checksums = shards, itemsize, checksums
        self._files = OpenFiles([Path(str(data), shard.name) for data, shard in shards])
        self._remote = {n for n, (data, _) in enumerate(shards) if isinstance(data, RemoteDataset)}

    def fill(self, shards: Int64Array, views: list[memoryview], offsets: list[int]) -> list[int]:
        """Read a piece of a shard [N] into each view [N] from its offset [N] on; shards in order.

        Returns how many bytes there were of each: fewer where the file ends. Raises DataError for a
        shard that is missing, and EsolmError for a server that does not answer.
        """
        found = [0] * len(views)
        remote: dict[tuple[int, int], Wanted] = {}
        for group in _groups(shards):
            shard = int(shards[group.start])
            if shard in self._remote:
                for n in range(group.start, group.stop):
                    member, within = self._place(shard, offsets[n])
                    remote.setdefault((shard, member), []).append((n, views[n], within))
                continue
            file, preadv = self._files.get(shard), os.preadv
            descriptor = file.descriptor  # open for as long as `file` is held
            pairs = zip(views[group], offsets[group], strict=True)
            found[group] = [preadv(descriptor, (view,), offset) for view, offset in pairs]
        if remote:
            self._fill_remote(remote, found)
        return found

    def _place(self, shard: int, offset: int) -> tuple[int, int]:
        info = self._shards[shard][1]
        return divmod(offset - info.member_offset, info.member_stride)

    def _fill_remote(self, wanted: dict[tuple[int, int], Wanted], found: list[int]) -> None:
        checksums: dict[RemoteDataset, list[tuple[str, str]]] = {}
        for shard in dict.fromkeys(shard for shard, _ in wanted):
            data, info = self._remote_of(shard)
            checksums.setdefault(data, []).append((info.crc_name, info.crc_sha256))
        for data, files in checksums.items():
            data.fetch(files)
        missing = [
            place
            for place, pieces in wanted.items()
            if self._kept(place, pieces, found) is not Kept.SOUND
        ]
        waiting = []
        for place in missing:
            pool = self._remote_of(place[0])[0].folder.pool()
            waiting.append(pool.submit(self._fetch, place, wanted[place], found))
        try:
            for each in waiting:
                each.result()
        finally:
            for each in waiting:
                each.cancel()
            wait(waiting)  # they write into memory that the next call uses again

    def _remote_of(self, shard: int) -> tuple[RemoteDataset, ShardInfo]:
        data, info = self._shards[shard]
        assert isinstance(data, RemoteDataset)
        return data, info

    def _fetch(self, place: tuple[int, int], pieces: Wanted, found: list[int]) -> None:
        """Fetch a member, keep it, and take pieces of it."""
        member, (data, info) = place[1], self._remote_of(place[0])
        key = _key(info, member)
        size = min(MEMBER_TOKENS, info.num_tokens - member * MEMBER_TOKENS) * self._itemsize
        start = info.member_offset + member * info.member_stride
        with data.cache.fetching(key):
            before = self._kept(place, pieces, found)
            if before is Kept.SOUND:  # another process was faster
                return
            for _ in range(2):  # what was damaged on the way is not so twice
                content = data.folder.read(info.name, start, start + size)
                data.counts.add(fetched=len(content))
                is_sound = len(content) == size and self._is_sound(place, 0, memoryview(content))
                if is_sound:
                    break
            # Of a member that is damaged over there, too, other rows may need what is sound.
            if len(content) == size:
                data.cache.put(key, content)
        data.counts.add(parts=len(pieces), damaged=int(is_sound and before is Kept.DAMAGED))
        for number, view, within in pieces:
            piece = content[within : within + len(view)]
            view[: len(piece)] = piece
            found[number] = len(piece)

    def _kept(self, place: tuple[int, int], pieces: Wanted, found: list[int]) -> Kept:
        """Take pieces of a member from the cache, if they are there as they were written."""
        member, (data, info) = place[1], self._remote_of(place[0])
        descriptor = data.cache.open(_key(info, member))
        if descriptor is None:
            return Kept.NOT
        try:
            for number, view, within in pieces:
                found[number] = os.preadv(descriptor, (view,), within)
                if found[number] != len(view) or not self._is_sound(place, within, view):
                    return Kept.DAMAGED
        finally:
            os.close(descriptor)
        data.counts.add(parts=len(pieces), hits=len(pieces))
        return Kept.SOUND

    def _is_sound(self, place: tuple[int, int], within: int, content: memoryview) -> bool:
        """Say whether bytes of a member, from a checked part of it on, have its checksums."""
        assert self._checksums is not None, "tokens at an address are always checked"
        step = CHECKED_TOKENS * self._itemsize
        found = [crc32(content[a : a + step]) for a in range(0, len(content), step)]
        first = place[1] * (MEMBER_TOKENS // CHECKED_TOKENS) + within // step
        parts = np.arange(first, first + len(found))
        return bool((self._checksums.of(np.full_like(parts, place[0]), parts) == found).all())


def _key(info: ShardInfo, member: int) -> str:
    """Return the name of a member in the cache: by what it holds, wherever it lies."""
    return f"{info.sha256}-{member:06d}"


def _groups(numbers: Int64Array) -> list[slice]:
    """Return the slices of equal neighbours."""
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [slice(begin, end) for begin, end in pairwise(bounds) if begin < end]
