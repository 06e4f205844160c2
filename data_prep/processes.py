"""Processes that end with the one that started them."""

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_START_FIELD = 19
"""When a process started, among the fields of /proc/PID/stat behind the name of its program."""


def start_of(process: int) -> str:
    """Return what tells a process from another one of the same id; nothing where it is unknown."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[_START_FIELD]
    except (OSError, IndexError):
        return ""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, the process that started it, is gone.

    Nothing else reaches the children of a process that was itself killed. Linux only: elsewhere
    this does nothing.
    """
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the line above
        os.kill(os.getpid(), signal.SIGKILL)
