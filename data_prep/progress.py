"""The progress of a long job on stderr: a bar on a terminal, one line per interval elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

INTERVAL_SECONDS = 10.0


class ProgressBar:
    """Shows how much of a known total is done, in pieces or in bytes; it is silent unless `shown`.

    done: how much was done before. in_lines: whether lines are printed where stderr is no terminal;
    a caller that logs by itself does not want them. Nothing is printed to stdout, which is for what
    the command itself prints.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        done: int = 0,
        in_bytes: bool = False,
        shown: bool = True,
        in_lines: bool = True,
    ) -> None:
        self._label, self._total, self._in_bytes = label, max(1, total), in_bytes
        self._first = self._done = done
        self._started = self._reported = time.monotonic()
        on_terminal = shown and sys.stderr.isatty()
        self._in_lines = shown and in_lines and not on_terminal
        self._bar = _bar(in_bytes) if on_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task(label, total=self._total, completed=done, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: int = 1) -> None:
        """Counts that so much more is done."""
        self.update(self._done + amount)

    def update(self, done: int) -> None:
        """Sets how much of the total is done, and shows it when it is time."""
        self._done = done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self._in_lines and now - self._reported >= INTERVAL_SECONDS:
            self._reported = now
            print(f"{self._label}: {self._text(now)}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Shows a few words behind the bar of a terminal."""
        if self._bar is not None:
            self._bar.update(self._task, note=text)

    def time_left(self) -> str:
        """The time to the end at the speed so far, as H:MM:SS.

        It is "n/a" before anything is done, and beyond the total: that of a compressed corpus is
        what lies on disk, and what is done is more.
        """
        done = self._done - self._first
        if done <= 0 or self._done > self._total:
            return "n/a"
        seconds = (time.monotonic() - self._started) * (self._total - self._done) / done
        return str(timedelta(seconds=round(seconds)))

    def _text(self, now: float) -> str:
        left = f"{self.time_left()} left"
        if not self._in_bytes:
            return f"{self._done}/{self._total}, {left}"
        share, megabytes = 100 * self._done / self._total, self._done / 1e6
        speed = (self._done - self._first) / 1e6 / (now - self._started)
        return f"{megabytes:.1f} MB ({share:.0f} %), {speed:.1f} MB/s, {left}"


@contextmanager
def phase(label: str, *, shown: bool = True) -> Iterator[None]:
    """Shows that something runs whose length is not known, and for how long it has.

    It is a spinner on a terminal, and one line per interval elsewhere. No other phase and no bar
    may be shown meanwhile.
    """
    if not shown:
        yield
    elif sys.stderr.isatty():
        with _spinner() as spinner:
            spinner.add_task(label)
            yield
    else:
        ended = threading.Event()
        teller = threading.Thread(target=_tell, args=(label, ended), daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()


def _tell(label: str, ended: threading.Event) -> None:
    started = time.monotonic()
    while not ended.wait(INTERVAL_SECONDS):
        passed = timedelta(seconds=round(time.monotonic() - started))
        print(f"{label}: {passed} so far", file=sys.stderr, flush=True)


def _spinner() -> "Progress":
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}"),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _bar(in_bytes: bool) -> "Progress":
    from rich import progress
    from rich.console import Console

    amount: list[progress.ProgressColumn] = [progress.MofNCompleteColumn()]
    if in_bytes:
        amount = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *amount,
        progress.TextColumn("{task.fields[note]}"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=not in_bytes,
    )
