"""How long a start takes, by the kernel's clock: imports are a large part of it."""

import os
import time
from pathlib import Path

from esolm.pipeline.launch.ranks import LAUNCHER


def seconds_since_start() -> float:
    """Returns the seconds since this rank's launcher, or else this process, was started."""
    process = os.environ.get(LAUNCHER, "self")
    # The fields follow the command's name, which is in parentheses and may hold anything.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
