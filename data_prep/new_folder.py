"""A folder that has its name only when everything in it is there and durable."""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fsync_directory

logger = logging.getLogger(__name__)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` that gets its name at the end, unless there is an error.

    What a killed process left of it is removed. Files in it must be durable. Raises DataError if
    `out` exists, or another process is writing it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work, lock = (out.with_name(f"{out.name}.esolm-{name}") for name in ("part", "lock"))
    with open(lock, "w") as stream:
        _take(stream, out)
        try:
            if out.exists():
                raise DataError(f"--out {out} exists: name a folder that does not.")
            if work.exists():
                shutil.rmtree(work)
            work.mkdir()
            yield work
            fsync_directory(work)
            work.rename(out)
            fsync_directory(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _take(lock: IO[str], out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"--out {out} is being written by another process. Let it end.") from error
    except OSError as error:
        # Some file systems have no locks; there a second writer is not noticed.
        logger.warning("%s cannot be locked (%s): do not run the command twice", out, error)
