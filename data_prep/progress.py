"""Progress of a long job: a bar on a terminal, one line per interval otherwise."""

import sys
import time
from types import TracebackType

INTERVAL_SECONDS = 10.0


class Progress:
    """Bytes done of a known total; use as a context manager and call `update` with the total done.

    Everything goes to stderr, so that stdout stays what the command prints.
    """

    def __init__(self, label: str, total_bytes: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._label = label
        self._total_bytes = max(1, total_bytes)
        self._started = self._reported = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(label, total=self._total_bytes)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done_bytes: int) -> None:
        """Show that `done_bytes` of the total are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done_bytes)
            return
        now = time.monotonic()
        if now - self._reported >= INTERVAL_SECONDS:
            self._reported = now
            speed = done_bytes / (now - self._started) / 1e6
            share = 100 * done_bytes / self._total_bytes
            print(
                f"{self._label}: {done_bytes / 1e6:.1f} MB ({share:.0f} %), {speed:.1f} MB/s",
                file=sys.stderr,
                flush=True,
            )
