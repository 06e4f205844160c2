"""What a person sees of a run: a progress bar on a terminal, and one log line per interval."""

import logging
from typing import Any, Self

from esolm.data_prep.progress import ProgressBar

logger = logging.getLogger(__name__)


class ProgressReport:
    """Shows the training's progress on rank 0; does nothing on the others."""

    def __init__(self, total_steps: int, step: int, visible: bool) -> None:
        self._visible = visible
        self._bar = ProgressBar("training", total_steps, done=step, shown=visible, in_lines=False)

    def advance(self, step: int) -> None:
        self._bar.update(step)

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Shows the metrics of a logged step."""
        if not self._visible:
            return
        loss = values.get("loss", values.get("valid_loss"))
        if loss is not None:
            self._bar.note(f"loss {_short(loss)}")
        text = " ".join(f"{name} {_short(value)}" for name, value in values.items())
        logger.info("step %d: %s, time left %s", step, text, self._bar.time_left())

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
