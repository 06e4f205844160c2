"""Checkpoints under an fsspec URL, laid out as in a run directory: URL/checkpoints/step_N/.

The manifest is the last file of a checkpoint to be written and the first to be removed, so there
too a directory without a valid one is no checkpoint. It gives the size and the checksum of every
file, so a store that cannot rename, and that puts files in no known order, is good enough.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from esolm.data_prep.remote import is_url, shown
from esolm.pipeline.checkpoint import commit
from esolm.pipeline.errors import CheckpointError

logger = logging.getLogger(__name__)

CHUNK = 1 << 22
TOKENIZER = "tokenizer"


def url_problems(key: str, url: str) -> list[str]:
    """Says what is wrong with a URL before its server is asked for anything."""
    if not url:
        return []
    if not is_url(url):
        return [f"{key} '{url}' is no URL; write e.g. s3://bucket/run or file:///mnt/runs/first"]
    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        return [f"{key}: {protocol}:// cannot be used here: {error}"]
    return []


@dataclass(frozen=True)
class RunAddress:
    """A run's URL, and the name of one of its checkpoints if the URL names one."""

    run: str
    checkpoint: str | None

    @classmethod
    def of(cls, url: str) -> "RunAddress":
        above, _, name = url.rstrip("/").rpartition("/")
        if commit.is_step_name(name):
            return cls(above.removesuffix("/checkpoints"), name)
        return cls(url.rstrip("/"), None)


class RemoteRun:
    """Reads and writes below a run's URL; `checkpoint` is always a directory's name.

    Whatever goes wrong on the way is raised as CheckpointError and names the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = shown(url.rstrip("/"))
        with self._named(""):
            # Earlier listings and connections say nothing about the server as it is now.
            self._fs, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
            self._root = root.rstrip("/")

    def checkpoints(self) -> list[str]:
        """Lists the names of all that may be checkpoints, oldest first, whole or not."""
        names = [name for name in self._ls("checkpoints") if commit.is_step_name(name)]
        return sorted(names, key=lambda name: commit.step_of(Path(name)))

    def manifest(self, checkpoint: str) -> commit.CheckpointManifest:
        """Reads a checkpoint's manifest. Raises CheckpointError if it or a file's size is wrong."""
        where = f"{self.url}/checkpoints/{checkpoint}"
        found = self._ls(f"checkpoints/{checkpoint}")
        if commit.MANIFEST not in found:
            raise CheckpointError(f"{where} has no {commit.MANIFEST}: it was never committed")
        manifest = commit.parse_manifest(
            self.read(f"checkpoints/{checkpoint}/{commit.MANIFEST}"), where
        )
        for name, expected in manifest.files.items():
            size = found[name]["size"] if name in found else None
            if size != expected["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes"
                raise CheckpointError(
                    f"{where}/{name} {state}; the manifest says {expected['bytes']} bytes"
                )
        return manifest

    def newest(self) -> tuple[str, commit.CheckpointManifest] | None:
        """Returns the newest checkpoint whose manifest and sizes hold; the log names bad ones."""
        for name in reversed(self.checkpoints()):
            try:
                return name, self.manifest(name)
            except CheckpointError as error:
                logger.warning("checkpoint skipped: %s", error)
        return None

    def files(self, directory: str) -> dict[str, dict[str, Any]]:
        """Returns the size, and what else the store knows, of each file in a directory, by name."""
        entries = self._ls(directory)
        return {name: info for name, info in entries.items() if info["type"] == "file"}

    def read(self, path: str) -> str:
        with self._named(path):
            content: bytes = self._fs.cat_file(f"{self._root}/{path}")
        return content.decode()

    def get(self, path: str, target: Path) -> None:
        with self._named(path):
            self._fs.get_file(f"{self._root}/{path}", str(target))

    def put(self, source: Path, path: str) -> None:
        """Copies a local file there; makes the directory above it, too."""
        with self._named(path):
            full = f"{self._root}/{path}"
            self._fs.makedirs(full.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), full)

    def digest(self, path: str) -> dict[str, Any]:
        """Returns the size and the checksum of a file, as `commit.digest` does."""
        checksum, size = hashlib.sha256(), 0
        with self._named(path), self._fs.open(f"{self._root}/{path}", "rb") as file:
            while chunk := file.read(CHUNK):
                checksum.update(chunk)
                size += len(chunk)
        return {"bytes": size, "sha256": checksum.hexdigest()}

    def time_of(self, path: str) -> str:
        """Says when a file was written, or "n/a" if the store does not tell."""
        try:
            moment: datetime = self._fs.modified(f"{self._root}/{path}")
        except (NotImplementedError, OSError):
            return "n/a"
        return moment.astimezone(UTC).isoformat(timespec="seconds")

    def remove(self, checkpoint: str) -> None:
        """Removes a checkpoint, its manifest first: what a broken connection leaves is none."""
        directory = f"checkpoints/{checkpoint}"
        names = sorted(self._ls(directory), key=lambda name: name != commit.MANIFEST)
        with self._named(directory):
            for name in names:
                self._fs.rm_file(f"{self._root}/{directory}/{name}")
            if self._fs.isdir(f"{self._root}/{directory}"):  # a bucket has no directories
                self._fs.rmdir(f"{self._root}/{directory}")

    def damage_of(self, checkpoint: str) -> list[str]:
        """Says all that is wrong with a checkpoint, as `listing.damage_of`; reads every byte."""
        try:
            manifest = self.manifest(checkpoint)
        except CheckpointError as error:
            return [str(error)]
        return [
            f"{self.url}/checkpoints/{checkpoint}/{name}: checksum differs from the manifest's"
            for name, expected in sorted(manifest.files.items())
            if self.digest(f"checkpoints/{checkpoint}/{name}") != expected
        ]

    def _ls(self, directory: str) -> dict[str, dict[str, Any]]:
        """Returns the entries of a directory by name; there are none if it does not exist."""
        with self._named(directory):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(f"{self._root}/{directory}", detail=True)
            except FileNotFoundError:
                return {}
        return {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in entries}

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Turns any error into a CheckpointError that names the URL.

        Each kind of file system raises errors of its own kind, ftplib's EOFError among them.
        """
        try:
            yield
        except Exception as error:
            where = f"{self.url}/{path}".rstrip("/")
            raise CheckpointError(f"{where}: {type(error).__name__}: {error}") from error


def pull(
    remote: RemoteRun, checkpoint: str, name: str, into: Path, manifest: commit.CheckpointManifest
) -> list[str]:
    """Copies a file of a checkpoint into an existing directory and says what is wrong with it."""
    remote.get(f"checkpoints/{checkpoint}/{name}", into / name)
    return commit.verify_files(into, manifest, [name])


def fetch(url: str, into: Path | None = None) -> Path:
    """Copies a run's newest valid checkpoint, or the one that the URL names; returns its directory.

    The copy lies in `into` (the user's cache by default) as in a run directory, with the tokenizer
    beside it; what is there already is not copied again. Raises CheckpointError if there is no
    checkpoint, or if the copy is not what the manifest says.
    """
    place = RunAddress.of(url)
    remote, into = RemoteRun(place.run), into or _cache(place.run)
    found = remote.newest() if place.checkpoint is None else None
    if place.checkpoint is not None:
        found = place.checkpoint, remote.manifest(place.checkpoint)
    if found is None:
        raise CheckpointError(f"{shown(url)} holds no valid checkpoint")
    checkpoint, manifest = found
    target = into / "checkpoints" / checkpoint
    if not _is_copy(target, manifest):
        logger.info("copying %s/checkpoints/%s to %s", remote.url, checkpoint, target)
        staging = commit.begin(into / "checkpoints", manifest.step)
        for name in sorted(manifest.files):
            if problems := pull(remote, checkpoint, name, staging, manifest):
                raise CheckpointError(f"{remote.url} was not copied whole: {problems[0]}")
        commit.commit(staging, manifest)
    (into / TOKENIZER).mkdir(exist_ok=True)
    for name in remote.files(TOKENIZER):
        remote.get(f"{TOKENIZER}/{name}", into / TOKENIZER / name)
    return target


def _is_copy(directory: Path, manifest: commit.CheckpointManifest) -> bool:
    try:
        return commit.read_manifest(directory) == manifest
    except CheckpointError:
        return False


def _cache(run: str) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "esolm" / hashlib.sha256(run.encode()).hexdigest()[:16]
