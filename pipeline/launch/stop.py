"""Requests to stop this process, noted from its first moment to its last.

This module imports nothing heavy: a signal may come while torch is being imported, and one that
nobody handles yet would kill the rank instead of asking it to save.
"""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_asked = False


def note_stop_signals(signals: tuple[signal.Signals, ...] = STOP_SIGNALS) -> None:
    """Notes the signals from now on, so that `stop_asked` can tell of them."""
    for number in signals:
        signal.signal(number, _note)


def stop_asked() -> bool:
    """Whether one of the noted signals has come."""
    return _asked


def ignore_stop_signals() -> None:
    """Ignores stop signals from now on; for a process on its way out.

    The interpreter puts default actions back before it ends. Slurm sends TERM several times, and a
    second one must not turn exit code 85 into a death.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
