"""Progress of a long job on stderr: a bar on a terminal, one line per interval otherwise."""

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

INTERVAL_SECONDS = 10.0


class Progress:
    """Work done of a known total, in pieces or in bytes; silent unless `shown`.

    stdout stays what the command prints.
    """

    def __init__(
        self, label: str, total: int, *, in_bytes: bool = False, shown: bool = True
    ) -> None:
        self._label, self._total, self._in_bytes = label, max(1, total), in_bytes
        self._shown, self._done = shown, 0
        self._started = self._reported = time.monotonic()
        self._bar: Bar | None = None
        if shown and sys.stderr.isatty():
            self._bar = _bar(in_bytes)
            self._task = self._bar.add_task(label, total=self._total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: int = 1) -> None:
        """So much more is done."""
        self.update(self._done + amount)

    def update(self, done: int) -> None:
        """So much is done of the total."""
        self._done = done
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self._shown and now - self._reported >= INTERVAL_SECONDS:
            self._reported = now
            print(f"{self._label}: {self._text(now)}", file=sys.stderr, flush=True)

    def _text(self, now: float) -> str:
        if not self._in_bytes:
            return f"{self._done}/{self._total}"
        share, megabytes = 100 * self._done / self._total, self._done / 1e6
        return f"{megabytes:.1f} MB ({share:.0f} %), {megabytes / (now - self._started):.1f} MB/s"


def _bar(in_bytes: bool) -> "Bar":
    from rich import progress
    from rich.console import Console

    amount: list[progress.ProgressColumn] = [progress.MofNCompleteColumn()]
    if in_bytes:
        amount = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *amount,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=not in_bytes,
    )
