"""The repository's code in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(*packages: Path) -> dict[str, str]:
    """One thread, so that small tensors are not fought over, and this checkout's packages.

    packages: further folders to import from.
    """
    paths = os.pathsep.join(map(str, (ROOT, *packages)))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def run_python(
    *arguments: str,
    folder: Path | None = None,
    timeout: float = 400,
    packages: tuple[Path, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS...` to its end; of `-m esolm` that is `esolm`, as a user types it."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=folder,
        env=environment(*packages),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
