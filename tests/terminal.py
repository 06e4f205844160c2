"""Commands whose errors go to a terminal, as a person sees them, and whose output is piped."""

import os
import subprocess
import sys
import threading

from tests.processes import environment


def run_at_terminal(*arguments: str, timeout: float = 300) -> tuple[int, str, str]:
    """`python ARGUMENTS...`: its exit code, its output, and what the terminal was sent."""
    ours, theirs = os.openpty()
    seen: list[bytes] = []
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments],
        env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    reader = threading.Thread(target=_drain, args=(ours, seen), daemon=True)
    reader.start()
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    reader.join()
    os.close(ours)
    return process.returncode, output.decode(), b"".join(seen).decode()


def _drain(terminal: int, seen: list[bytes]) -> None:
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # EIO: nobody holds the other end any more
            return
        if not part:
            return
        seen.append(part)
