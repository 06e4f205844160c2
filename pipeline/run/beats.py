"""Signs of life: every rank touches a file of its own, so that one that is stopped can be named.

A rank that waits for another gives them all the same, and a stopped one none, whoever waits for it.
"""

import logging
import os
import platform
import threading
import time
from pathlib import Path

from esolm.pipeline.run.directory import RunDirectory

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
# After so long without a sign of life a process is taken for stopped, or its node for frozen.
SILENT_SECONDS = 60.0
NAMED = 3


class Beat:
    """Touches a rank's file every few seconds from a thread, until it is closed."""

    def __init__(self, directory: RunDirectory, rank: int) -> None:
        self._path = directory.beat(rank)
        self._closed = threading.Event()
        self._problem = ""
        node = os.environ.get("SLURMD_NODENAME", platform.node())
        self._path.write_text(f"{node}, process {os.getpid()}\n")
        threading.Thread(target=self._run, name="beat", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            try:
                os.utime(self._path)
            except OSError as error:
                if not self._closed.is_set() and str(error) != self._problem:
                    logger.warning("no sign of life could be given: %s", error)
                    self._problem = str(error)


def silence(path: Path) -> float:
    """Seconds since a file was touched."""
    return time.time() - path.stat().st_mtime


def silent_ranks(directory: RunDirectory) -> str | None:
    """Names ranks of a live run that have given no sign of life for long; None if all have.

    A file that was last touched before the run was locked is left over from another start.
    """
    locked = (directory.path / ".lock").stat().st_mtime
    silent = []
    for path in sorted(directory.logs.glob("beat_*"), key=lambda path: int(path.name[5:])):
        try:
            seconds, place, touched = silence(path), path.read_text().strip(), path.stat().st_mtime
        except FileNotFoundError:  # it has just left
            continue
        if touched >= locked and seconds > SILENT_SECONDS:
            silent.append(f"rank {path.name[5:]} ({place}) for {seconds:.0f} s")
    if not silent:
        return None
    more = f" and {len(silent) - NAMED} more" if len(silent) > NAMED else ""
    return f"no sign of life from {', '.join(silent[:NAMED])}{more}: stopped, or a node is frozen"
