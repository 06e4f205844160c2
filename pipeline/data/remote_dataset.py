"""A dataset at an address: this node's copy of its records, and where its tokens are fetched."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.files import (
    fingerprint_of,
    naming,
    read_json,
    sha256_of_file,
    size_problem,
    write_atomic,
    write_json,
)
from esolm.data_prep.layout import ShardInfo
from esolm.data_prep.manifest import (
    MANIFEST_NAME,
    TOKENIZER_DIRECTORY,
    Manifest,
    read_manifest,
)
from esolm.data_prep.verify import tokenizer_problems
from esolm.pipeline.data.block_cache import BlockCache, CachePlace
from esolm.pipeline.data.open_files import ADVICE, OpenFile, file_in_memory
from esolm.pipeline.data.remote_folder import AbsentFileError, RemoteFolder

FRESH_SECONDS = 600.0
"""For so long the processes of a node do not look again at the sizes of shards."""
TOKENIZER_NAMES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
)  # fmt: skip
"""What is asked for where a server does not list the files of a folder."""
UNTELLING = {"name", "size", "type", "url", "mimetype", "partial"}
"""What a server says of a file that does not tell it from one written later."""
CHUNK_BYTES = 1 << 22


@dataclass
class FetchCounts:
    """What was read of a dataset at an address since the process began.

    parts: pieces of rows that were asked for; hits: those that the cache had. fetched: bytes.
    damaged: blocks of the cache that were not what was written, and were fetched again.
    """

    parts: int = 0
    hits: int = 0
    fetched: int = 0
    damaged: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, parts: int = 0, hits: int = 0, fetched: int = 0, damaged: int = 0) -> None:
        """Count; safe to use from several threads."""
        with self._lock:
            self.parts += parts
            self.hits += hits
            self.fetched += fetched
            self.damaged += damaged


class RemoteDataset:
    """Its folder at the address, the cache of its blocks, and the folder of its records here."""

    def __init__(self, url: str, place: CachePlace) -> None:
        """Copy manifest and tokenizer to this node, unless one of its processes has done so.

        Raises DataError if there is no dataset, or one without checksums, and EsolmError if the
        server does not answer or the cache's disk is full.
        """
        self.folder = RemoteFolder(url)
        self.cache = BlockCache(place)
        self.counts = FetchCounts()
        self._name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]
        self._proven: set[str] = set()
        self._fetched: set[str] = set()
        try:
            with self.cache.locked(self._name):
                self.records = self._copied_records()
        except OSError as error:
            raise EsolmError(
                f"{self} cannot be opened: data.cache_dir {self.cache.folder} cannot be written "
                f"({error.strerror}). Free space there, or name a folder on another disk."
            ) from error
        self.manifest = self._manifest(self.records)

    def __str__(self) -> str:
        return str(self.folder)

    def _copied_records(self) -> Path:
        """Return the folder of a copy that is what the server has now."""
        base = self.cache.folder / "datasets" / self._name
        state, about = base / "copied.json", self.folder.about(MANIFEST_NAME)
        signature = fingerprint_of(sorted((key, str(value)) for key, value in about.items()))
        if set(about) - UNTELLING and (known := _whole_copy(state, signature)):
            return known
        self.folder.read(MANIFEST_NAME, 1, 3)  # refuses a server that does not give parts of files
        content = {MANIFEST_NAME: self.folder.read_whole(MANIFEST_NAME), **self._tokenizer()}
        files = {name: hashlib.sha256(each).hexdigest() for name, each in content.items()}
        target = base / fingerprint_of(files)[:32]
        (target / TOKENIZER_DIRECTORY).mkdir(parents=True, exist_ok=True)
        for name, each in content.items():
            write_atomic(target / name, each)
        if not tokenizer_problems(target, self._manifest(target)):  # else it is looked at anew
            write_json(state, {"signature": signature, "folder": str(target), "files": files})
        return target

    def _tokenizer(self) -> dict[str, bytes]:
        content = {}
        for name in self.folder.names(TOKENIZER_DIRECTORY) or TOKENIZER_NAMES:
            path = f"{TOKENIZER_DIRECTORY}/{name}"
            with suppress(AbsentFileError):
                content[path] = self.folder.read_whole(path)
        return content

    def _manifest(self, records: Path) -> Manifest:
        try:
            manifest = read_manifest(records)
        except DataError as error:
            raise DataError(str(error).replace(str(records), str(self))) from error
        if not all(shard.crc_name for shard in manifest.shards):
            raise DataError(
                f"{self} is of format 1, without checksums of its tokens, and what comes over a "
                "network is not used unchecked: tokenize it again, or copy it to a disk."
            )
        return manifest

    def size_problems(self, shards: Sequence[ShardInfo], may_be_short: bool) -> list[str]:
        """Say which shards are missing or of the wrong size; once for the processes of a node.

        may_be_short: whether a shard that was cut short is no problem.
        """
        what = fingerprint_of([self.manifest.fingerprint, shards[0].name, may_be_short])
        marker = self.records / f"sizes-{what[:16]}"
        with naming(self.records), self.cache.locked(self._name):
            with suppress(OSError):
                if abs(time.time() - marker.stat().st_mtime) < FRESH_SECONDS:
                    return []
            problems = self._size_problems(shards, may_be_short)
            if not problems:
                with suppress(OSError):  # of a full disk: the next one looks again
                    marker.write_bytes(b"")
                    os.utime(marker)
        return problems

    def _size_problems(self, shards: Sequence[ShardInfo], may_be_short: bool) -> list[str]:
        listed = self.folder.sizes(shards[0].name.rpartition("/")[0])

        def problem(shard: ShardInfo) -> str | None:
            found: int | None = None
            with suppress(AbsentFileError):
                if listed is None:
                    found = self.folder.about(shard.name)["size"]
                    found = shard.num_bytes if found is None else found  # it does not tell
                else:
                    found = listed.get(shard.name.rpartition("/")[2])
            name = f"{self}/{shard.name}"
            if found is None:
                return f"{name}: missing"
            if may_be_short and found < shard.num_bytes:
                return None
            return size_problem(name, shard.num_bytes, found)

        return [found for found in self.folder.pool().map(problem, shards) if found]

    def content(self, name: str, num_bytes: int) -> Iterator[bytes]:
        """Yield the bytes of a file past the cache, in pieces; at most one too many.

        Raises as `RemoteFolder.read` does.
        """
        for start in range(0, num_bytes + 1, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, num_bytes + 1)
            yield (piece := self.folder.read(name, start, end))
            if len(piece) < end - start:
                return

    def copy_record(self, name: str) -> None:
        """Copy a small file beside the manifest; once for the processes of a node."""
        path = self.records / name
        with naming(path), self.cache.locked(self._name):
            with suppress(OSError):
                if abs(time.time() - path.stat().st_mtime) < FRESH_SECONDS:
                    return
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_atomic(path, self.folder.read_whole(name))
            except AbsentFileError:
                path.unlink(missing_ok=True)

    def fetch(self, files: Sequence[tuple[str, str]]) -> None:
        """Have the cache hold files, each with its sha256; several at a time. Raises as `file`."""
        missing = [each for each in files if each[1] not in self._fetched]
        if missing:
            list(self.folder.pool().map(self.file, *zip(*missing, strict=True)))
            self._fetched.update(sha256 for _, sha256 in missing)

    def file(self, name: str, sha256: str) -> OpenFile:
        """Return a file of the dataset that has this sha256, from the cache if it is there.

        Raises DataError if the server has another, and as `RemoteFolder.read_whole` does.
        """
        if (kept := self._kept(sha256)) is not None:
            return kept
        with self.cache.fetching(sha256):
            if (kept := self._kept(sha256)) is not None:  # another process was faster
                return kept
            for _ in range(2):  # what was damaged on the way is not so twice
                content = self.folder.read_whole(name)
                self.counts.add(fetched=len(content))
                found = hashlib.sha256(content).hexdigest()
                if found == sha256:
                    break
            else:
                raise DataError(
                    f"{self}/{name}: changed, sha256 {sha256} expected, {found} found. {ADVICE}"
                )
            self.cache.put(sha256, content)
        kept = self._kept(sha256)
        return file_in_memory(content) if kept is None else kept

    def _kept(self, sha256: str) -> OpenFile | None:
        descriptor = self.cache.open(sha256)
        if descriptor is None:
            return None
        file = OpenFile(descriptor)
        if sha256 not in self._proven:
            if sha256_of_file(Path(f"/proc/self/fd/{descriptor}")) != sha256:
                self.cache.drop(sha256)
                self.counts.add(damaged=1)
                return None
            self._proven.add(sha256)
        return file


def _whole_copy(state: Path, signature: str) -> Path | None:
    """Return the folder of the last copy if it is what the server has, and whole."""
    with suppress(DataError, OSError, KeyError):
        found = read_json(state, "")
        folder = Path(found["folder"])
        files: dict[str, str] = found["files"]
        if found["signature"] == signature and all(
            sha256_of_file(folder / name) == sha256 for name, sha256 in files.items()
        ):
            return folder
    return None
