"""How long a start takes, by the kernel's clock: imports are a large part of it."""

import os
import time
from pathlib import Path

from pipeline.launch.ranks import LAUNCHER


def seconds_since_start() -> float:
    """Since the launcher of this rank was started; since this process was, where it has none."""
    process = os.environ.get(LAUNCHER, "self")
    # Behind the command's name, in parentheses, which may hold anything.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
