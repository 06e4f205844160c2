"""What a person sees of a run: a progress bar on a terminal, else one log line per interval."""

import logging
import sys
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger(__name__)


class ProgressReport:
    """Shows the training's progress on rank 0; does nothing on the others."""

    def __init__(self, total_steps: int, step: int, visible: bool) -> None:
        self._visible = visible
        self._bar: Progress | None = None
        if visible and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("train", total=total_steps, completed=step, text="")

    def advance(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, values: dict[str, Any]) -> None:
        """The metrics of a logged step."""
        text = " ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self._bar is not None:
            shown = values.get("loss", values.get("valid_loss"))
            self._bar.update(self._task, text=f"loss {_short(shown)}")
        if self._visible:
            logger.info("step %d: %s", step, text)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
