"""Writing shards: webdataset tars of raw little-endian tokens, with the same bytes on every run."""

import contextlib
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.files import (
    commit_stream,
    naming,
    temporary_path,
    write_atomic,
)
from esolm.data_prep.layout import (
    CHECKED_TOKENS,
    MEMBER_TOKENS,
    TAR_BLOCK_BYTES,
    ShardInfo,
    member_stride,
)
from esolm.data_prep.manifest import SHARDS_DIRECTORY
from esolm.data_prep.metadata import METADATA_SUFFIX, MetadataFile
from esolm.data_prep.records import write_record
from esolm.data_prep.tokenizers.protocol import Ids


def shard_prefix(split: str, task: int) -> str:
    """Return the start of the names of all files that a task writes for a split."""
    return f"{split}-{task:05d}-"


class TokenTar:
    """A tar that is being written. Its bytes depend on the tokens and the name of the tar alone."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.num_tokens = 0
        self.num_bytes = 0
        self._dtype = np.dtype(dtype)
        self._suffix = f"u{8 * self._dtype.itemsize}"
        self._temporary = temporary_path(path)
        self._stream = io.BufferedWriter(io.FileIO(self._temporary, "w"), MEMBER_TOKENS)
        self._digest = hashlib.sha256()
        self.checksums: list[int] = []
        """The crc32 of every 1,024 tokens of each member so far."""
        self._pending: list[Ids] = []
        self._num_pending = 0

    def append(self, tokens: Ids) -> None:
        """Add tokens to the end of the stream."""
        # They become one array member by member, for most documents are short.
        self._pending.append(tokens)
        self._num_pending += len(tokens)
        self.num_tokens += len(tokens)
        if self._num_pending >= MEMBER_TOKENS:
            self._write_members(MEMBER_TOKENS)

    def _write_members(self, smallest: int) -> None:
        parts = (part for part in self._pending if len(part))  # no type is known of an empty list
        tokens = np.concatenate([*parts]).astype(self._dtype)
        start = 0
        while len(tokens) - start >= smallest:
            self._write_member(tokens[start : start + MEMBER_TOKENS])
            start += MEMBER_TOKENS
        self._pending, self._num_pending = [tokens[start:]], len(tokens) - start

    def _write_member(self, tokens: npt.NDArray[np.generic]) -> None:
        number = self.num_bytes // member_stride(self._dtype.itemsize)
        # A new TarInfo has mtime, uid and gid 0, so the bytes do not depend on when or who writes.
        header = tarfile.TarInfo(f"{self.path.stem}-{number:06d}.{self._suffix}")
        content = tokens.tobytes()
        step = CHECKED_TOKENS * self._dtype.itemsize
        self.checksums += [
            zlib.crc32(content[start : start + step]) for start in range(0, len(content), step)
        ]
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        self._write(content)
        self._write(bytes(-len(content) % TAR_BLOCK_BYTES))

    def _write(self, content: bytes) -> None:
        with naming(self.path):
            self._stream.write(content)
        self._digest.update(content)
        self.num_bytes += len(content)

    def commit(self) -> str:
        """Finish the tar, make it durable under its final name and return its sha256."""
        if self._num_pending:
            self._write_members(1)
        self._write(bytes(2 * TAR_BLOCK_BYTES))
        commit_stream(self._stream, self._temporary, self.path)
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Close and remove an unfinished tar."""
        with contextlib.suppress(OSError):  # what was not written yet need not be
            self._stream.close()
        self._temporary.unlink(missing_ok=True)


class ShardWriter:
    """Writes the shards of one split and one task. A shard holds whole documents."""

    def __init__(
        self,
        data: Path,
        split: str,
        task: int,
        dtype: str,
        shard_tokens: int,
        fingerprint: str | None,
    ) -> None:
        """Write below `data`.

        fingerprint: that of the task, which goes into every sidecar; without one there are none.
        """
        self.shards: list[ShardInfo] = []
        self._data = data
        self._prefix = shard_prefix(split, task)
        self._dtype = np.dtype(dtype)
        self._shard_tokens = shard_tokens
        self._fingerprint = fingerprint
        self._tar: TokenTar | None = None
        self._ends: list[int] = []
        self._metadata: MetadataFile | None = None

    def add(self, parts: Iterable[Ids], metadata: bytes | None = None) -> int:
        """Add the tokens of one document, with its eos, and close the shard if it is full.

        metadata: a line with what is kept of the document; of all documents or of none. Returns the
        number of tokens. They come in parts, so that a document of any length needs little memory.
        """
        if self._tar is None:
            name = f"{self._prefix}{len(self.shards):05d}.tar"
            self._tar = TokenTar(self._data / SHARDS_DIRECTORY / name, self._dtype.str)
        if metadata is not None:
            if self._metadata is None:
                self._metadata = MetadataFile(self._tar.path.with_suffix(METADATA_SUFFIX))
            self._metadata.write(metadata)
        before = self._tar.num_tokens
        for tokens in parts:
            self._tar.append(tokens)
        end = self._tar.num_tokens
        self._ends.append(end)
        if end >= self._shard_tokens:
            self.close()
        return end - before

    def close(self) -> None:
        """Commit the shard in progress, if any: the tar, what lies beside it, then its sidecar."""
        if self._tar is None:
            return
        tar, buffer = self._tar, io.BytesIO()
        np.save(buffer, np.array(self._ends, dtype="<u8"))
        sha256 = tar.commit()
        ends = self._write_beside(".ends.npy", buffer.getvalue())
        crc = self._write_beside(".crc32", np.array(tar.checksums, dtype="<u4").tobytes())
        metadata = ("", 0, "")
        if self._metadata is not None:
            metadata = (f"{SHARDS_DIRECTORY}/{self._metadata.path.name}", *self._metadata.commit())
        shard = ShardInfo(
            name=f"{SHARDS_DIRECTORY}/{tar.path.name}",
            sha256=sha256,
            num_bytes=tar.num_bytes,
            num_tokens=tar.num_tokens,
            num_documents=len(self._ends),
            member_offset=TAR_BLOCK_BYTES,
            member_stride=member_stride(self._dtype.itemsize),
            ends_name=ends[0],
            ends_bytes=ends[1],
            ends_sha256=ends[2],
            crc_name=crc[0],
            crc_bytes=crc[1],
            crc_sha256=crc[2],
            metadata_name=metadata[0],
            metadata_bytes=metadata[1],
            metadata_sha256=metadata[2],
        )
        if self._fingerprint is not None:
            sidecar = {"task_fingerprint": self._fingerprint, "shard": shard.to_record()}
            write_record(tar.path.with_suffix(".json"), sidecar)
        self.shards.append(shard)
        self._tar, self._ends, self._metadata = None, [], None

    def _write_beside(self, suffix: str, content: bytes) -> tuple[str, int, str]:
        """Write a file beside the tar and return its name, its bytes and its sha256."""
        assert self._tar is not None
        path = self._tar.path.with_suffix(suffix)
        write_atomic(path, content)
        sha256 = hashlib.sha256(content).hexdigest()
        return f"{SHARDS_DIRECTORY}/{path.name}", len(content), sha256

    def discard(self) -> None:
        """Drop the shard in progress after an error."""
        if self._tar is not None:
            self._tar.discard()
            self._tar = None
        if self._metadata is not None:
            self._metadata.discard()
            self._metadata = None
