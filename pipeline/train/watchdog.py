"""Ends a rank that hangs."""

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

# The share of the watchdog's time after which a rank without progress writes its last words.
LAST_WORDS_AT = 0.8


class Watchdog:
    """Ends a rank that makes no progress, with the stack of every thread on disk.

    The timer runs outside the interpreter, so it also fires where a call into a library hangs.
    Shortly before, a thread calls `last_words`, if the interpreter still lets it.
    """

    def __init__(
        self, stacks: Path, seconds: float, last_words: Callable[[], None] | None = None
    ) -> None:
        self._seconds, self._last_words = seconds, last_words
        self._file: IO[str] = stacks.open("a")
        self._moved = time.monotonic()
        self._closed = threading.Event()
        if last_words is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def progress(self) -> None:
        """Puts the end off by the full time again."""
        self._moved = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def close(self) -> None:
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    def _watch(self) -> None:
        assert self._last_words is not None
        while not self._closed.wait(self._moved + LAST_WORDS_AT * self._seconds - time.monotonic()):
            if time.monotonic() - self._moved >= LAST_WORDS_AT * self._seconds:
                self._last_words()
                return
