"""Progress of a measurement on stderr: a bar on a terminal, one line per interval otherwise."""

import sys
import time
from types import TracebackType
from typing import Self

INTERVAL_SECONDS = 10.0


class Progress:
    """Pieces done of a known total; silent unless `shown`."""

    def __init__(self, label: str, total: int, shown: bool = True) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._label, self._total, self._shown = label, total, shown
        self._done, self._reported = 0, time.monotonic()
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Self:
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

    def advance(self) -> None:
        """One piece more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif self._shown and time.monotonic() - self._reported >= INTERVAL_SECONDS:
            self._reported = time.monotonic()
            print(f"{self._label}: {self._done}/{self._total}", file=sys.stderr, flush=True)
