"""A folder at an address, read part by part; what a connection fails at is tried again."""

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ftplib import error_perm
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs

from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.remote import is_absent, names_below, path_of, shown

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try; after the last one the run ends."""
STALL_SECONDS = 30.0
"""A server that sends nothing for so long has failed to answer."""
CONNECTIONS = {"ftp": 4}
"""The most connections of a process, where a server has few to give."""
MANY_CONNECTIONS = 16


class AbsentFileError(DataError):
    """A server has answered that there is no such file."""


class RemoteFolder:
    """A folder that fsspec reads; safe to use from several threads and after a fork."""

    def __init__(self, url: str) -> None:
        """Raise DataError for a protocol that fsspec does not know or lacks a package for."""
        self._url = url.rstrip("/")
        self.shown = shown(self._url)
        """What messages call it: the address without a user's name and password."""
        self._protocol = url.partition("://")[0]
        self._local = threading.local()
        # A fork's child must not close what its parent's threads have opened, so it is held.
        self._opened: dict[int, Any] = {}
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()
        try:
            fsspec.get_filesystem_class(self._protocol)
        except (ImportError, ValueError) as error:
            raise DataError(f"{self.shown} cannot be opened ({error}).") from error

    def __str__(self) -> str:
        return self.shown

    def pool(self) -> ThreadPoolExecutor:
        """Return as many threads of this process as there may be connections."""
        with self._lock:
            pool = self._pools.get(os.getpid())  # threads do not outlive a fork
            if pool is None:
                connections = CONNECTIONS.get(self._protocol, MANY_CONNECTIONS)
                pool = self._pools[os.getpid()] = ThreadPoolExecutor(connections, "fetch")
            return pool

    def read(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes of a file from start to end, fewer only where the file itself ends.

        Raises AbsentFileError if there is no such file, DataError if it may not be read or the
        server does not give parts of files, and EsolmError if it failed to answer at every try.
        """

        def part(files: Any, root: str) -> bytes:
            path = f"{root}/{name}"
            try:
                content: bytes = files.cat_file(path, start=start, end=end)
            except Exception:
                # Some servers answer a part behind the end of a file with an error of their own.
                size = _size_if_known(files, path)
                if size is None or size >= end:
                    raise
                return b"" if size <= start else bytes(files.cat_file(path, start=start, end=size))
            if len(content) < end - start:
                size = _size_if_known(files, path)
                if size is None or size > start + len(content):
                    raise EOFError(f"{len(content)} of {end - start} bytes came")
            return content

        content = self._attempt(name, part)
        if len(content) > end - start:
            raise DataError(
                f"{self}/{name}: {end - start} bytes were asked for and {len(content)} came, so "
                "the server does not give parts of files (HTTP's Range). Use one that does, or "
                "copy the dataset to a disk."
            )
        return content

    def read_whole(self, name: str) -> bytes:
        """Return a file. Raises as `read` does."""
        return self._attempt(name, lambda files, root: bytes(files.cat_file(f"{root}/{name}")))

    def about(self, name: str) -> dict[str, Any]:
        """Return what the server tells of a file: `size`, or None, and more. Raises as `read`."""

        def info(files: Any, root: str) -> dict[str, Any]:
            return dict(files.info(f"{root}/{name}"))

        return self._attempt(name, info)

    def sizes(self, folder: str) -> dict[str, int] | None:
        """Return the size of every file of a folder, or None where a listing does not tell."""

        def listed(files: Any, root: str) -> list[dict[str, Any]]:
            return list(files.ls(f"{root}/{folder}", detail=True))

        if self._protocol.startswith("http"):
            return None
        found = {str(e["name"]).rpartition("/")[2]: e for e in self._attempt(folder, listed)}
        if any(about.get("size") is None for about in found.values()):
            return None
        return {name: int(about["size"]) for name, about in found.items()}

    def names(self, folder: str) -> list[str]:
        """Return the files of a folder; there are none where the server does not list them."""
        with suppress(Exception):  # a plain server for HTTP says 404 or 403 of a folder
            return [n for n in names_below(path_of(f"{self._url}/{folder}")) if "/" not in n]
        return []

    def _attempt(self, name: str, act: Callable[[Any, str], T]) -> T:
        """Return what `act` makes of the file system and the folder's path, at the last try."""
        error: Exception
        for wait in (*WAITS, None):
            try:
                return act(*self._files())
            except Exception as caught:  # each protocol has its own
                if (final := self._final(name, caught)) is not None:
                    raise final from caught
                error = caught
                self._local.held = None  # the next try has a connection of its own
            if wait is not None:
                # Ranks that lost a server at once do not come back to it at once.
                time.sleep(wait * random.uniform(0.5, 1.0))
        raise EsolmError(
            f"{self}/{name} could not be read in {len(WAITS) + 1} tries ({type(error).__name__}: "
            f"{shown(str(error))}). Once the server answers, run the same command again: a run "
            "goes on from its newest checkpoint."
        ) from error

    def _final(self, name: str, error: Exception) -> DataError | None:
        """Return the error of what another try would not change."""
        status = getattr(error, "status", getattr(error.__cause__, "status", None))
        if isinstance(error, FileNotFoundError) and is_absent(error):
            return AbsentFileError(
                f"{self}/{name} does not exist. Put it there, or mend the address."
            )
        if status in (401, 403) or isinstance(error, (PermissionError, error_perm)):
            return DataError(
                f"{self}/{name} may not be read ({type(error).__name__}: {shown(str(error))}). "
                "Mend the address, or your rights there."
            )
        return None

    def _files(self) -> tuple[Any, str]:
        """Return this thread's file system and the path of the folder in it."""
        held = getattr(self._local, "held", None)
        if held is None or held[0] != os.getpid():
            options = _http_options(self._protocol) if self._protocol.startswith("http") else {}
            files, root = url_to_fs(self._url, skip_instance_cache=True, **options)
            held = self._local.held = (os.getpid(), files, root.rstrip("/"))
            self._opened[threading.get_native_id()] = files
        return held[1], held[2]


def _http_options(protocol: str) -> dict[str, Any]:
    """Return options with which a server that stalls is noticed, and parts are not compressed."""
    import aiohttp

    given = fsspec.config.conf.get(protocol, {})
    timeout = aiohttp.ClientTimeout(None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    return {
        "headers": {**given.get("headers", {}), "Accept-Encoding": "identity"},
        "client_kwargs": {"timeout": timeout, **given.get("client_kwargs", {})},
    }


def _size_if_known(files: Any, path: str) -> int | None:
    """Return the size of a file as it is now."""
    with suppress(Exception):  # what failed before is what is told
        files.invalidate_cache()
        size = files.info(path)["size"]
        return None if size is None else int(size)
    return None
