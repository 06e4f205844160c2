"""Requests to stop this process, noted from its first moment to its last.

This module imports nothing heavy: a signal may come while torch is being imported, and one that
nobody handles yet would kill the rank instead of asking it to save.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_asked = False


def note_stop_signals(signals: tuple[signal.Signals, ...] = STOP_SIGNALS) -> None:
    """Notes the signals from now on, so that `stop_asked` can tell of them."""
    for number in signals:
        signal.signal(number, _note)
    release_stop_signals()


def stop_asked() -> bool:
    """Whether one of the noted signals has come."""
    return _asked


@contextlib.contextmanager
def hold_stop_signals(
    signals: tuple[signal.Signals, ...] = STOP_SIGNALS,
) -> Iterator[None]:
    """Holds signals back meanwhile; they come at the end.

    A process that is started here inherits that, and lets them come when it can take them. Without
    it, a signal that comes while a rank's interpreter starts, before its first line runs, would
    kill the rank.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_stop_signals() -> None:
    """Lets signals come that were held back while this process started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


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
