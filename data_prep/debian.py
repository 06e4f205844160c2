"""Debian packages as they lie on the mirrors: downloaded and unpacked, nothing is installed."""

import re
import shutil
import subprocess
from pathlib import Path

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fsync_directory

NEEDED = ("apt-get", "apt-cache", "dpkg")


def check_programs() -> None:
    """Raise DataError if this is no system on which packages can be downloaded."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        raise DataError(
            f"{', '.join(missing)}: not found. The corpus is made of Debian's packages: run this "
            "on a Debian system or in a container of one (debian:bookworm), and copy its output."
        )


def resolve(package: str, pattern: str) -> str:
    """Return the dependency of a package whose whole name is of the pattern.

    `linux-doc` holds no files but depends on the documentation of the kernel that Debian has now.
    Raises DataError when apt does not know the package, or it has no such dependency.
    """
    depends = _run(["apt-cache", "depends", package], package)
    found = re.search(rf"^ +Depends: ({pattern})$", depends, re.MULTILINE)
    if found is None:
        raise DataError(f"{package} depends on nothing like '{pattern}': {depends.strip()}")
    return found[1]


def download(package: str, folder: Path, unfinished: Path) -> Path:
    """Return the file of a package's newest version in `folder`; it is fetched if it is not there.

    unfinished: a folder on the same disk, for a part of a file. Raises DataError with apt's own
    words when the package cannot be had.
    """
    listed = _run(["apt-get", "download", "--print-uris", package], package)
    name = re.search(r"^'\S+' (\S+\.deb) ", listed, re.MULTILINE)
    if name is None:
        raise DataError(f"apt-get does not say where {package} is: {listed.strip() or 'nothing'}")
    path = folder / name[1]
    if not path.exists():
        # Where apt is stopped it leaves a part of a file under the name of the whole.
        _run(["apt-get", "download", package], package, unfinished)
        (unfinished / path.name).replace(path)
        fsync_directory(folder)
    return path


def unpack(path: Path, folder: Path) -> None:
    """Write the files of a package below `folder`. Raises DataError if it is damaged."""
    try:
        _run(["dpkg", "-x", str(path.resolve()), str(folder)], path.name)
    except DataError as error:
        raise DataError(f"{error} Delete {path} and run the same command again.") from None


def _run(command: list[str], what: str, folder: Path | None = None) -> str:
    """Return what a command prints. Raises DataError with what it complains about."""
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if not line.startswith("W:")]
        said = " ".join(lines) or f"exit code {finished.returncode}"
        raise DataError(
            f"{what}: `{' '.join(command)}` failed ({said}). If apt does not know the package or "
            "its version is gone, run `apt-get update`; else look at the network and the mirror."
        )
    return finished.stdout
