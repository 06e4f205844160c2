"""What a run reports: one JSON line per logged step, and the same as TensorBoard scalars."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from esolm.pipeline.run.history import append_line, parse_line

logger = logging.getLogger(__name__)


class Reports:
    """Attempts writes that training does not depend on: on a full disk it goes on without them.

    A failure is logged once, and again only after something of its kind could be written.
    """

    def __init__(self) -> None:
        self._failing: set[str] = set()

    def attempt(self, kind: str, write: Callable[[], Any]) -> bool:
        """Calls `write` and says whether it succeeded. kind: what is written, for the warning."""
        try:
            write()
        except OSError as error:
            if kind not in self._failing:
                logger.warning("%s cannot be written (%s); training goes on", kind, error)
            self._failing.add(kind)
            return False
        self._failing.discard(kind)
        return True


class MetricsWriter:
    """Appends to metrics.jsonl and to the event files; rank 0 only.

    A run that resumes repeats the steps after its checkpoint: the lines of those steps are dropped
    from metrics.jsonl first, so that it holds each step once. last_kept: the step of the
    checkpoint, or -1 if there is none.
    """

    def __init__(self, metrics: Path, tensorboard: Path, last_kept: int, reports: Reports) -> None:
        self._metrics, self._reports = metrics, reports
        self._events: Any = None
        if metrics.exists():
            reports.attempt("metrics.jsonl", lambda: _drop_after(metrics, last_kept))

        def open_events() -> None:
            self._events = SummaryWriter(str(tensorboard), purge_step=last_kept + 1)

        reports.attempt("TensorBoard's events", open_events)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes the metrics of a step. values: numbers, or "n/a" for what is not known."""
        entry = {"step": step, **values}
        self._reports.attempt("metrics.jsonl", lambda: append_line(self._metrics, entry))
        self._on_events(lambda events: _add_scalars(events, step, values))

    def close(self) -> None:
        self._on_events(lambda events: events.close())

    def _on_events(self, act: Callable[[Any], None]) -> None:
        """Calls `act` with the writer of events, unless that has failed before.

        TensorBoard's thread ends with its first error, and the next call to it raises that again.
        """
        if self._events is None:
            return
        if not self._reports.attempt("TensorBoard's events", lambda: act(self._events)):
            self._events = None


def _add_scalars(events: Any, step: int, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            events.add_scalar(name, value, step)


def _drop_after(metrics: Path, step: int) -> None:
    """Drops the lines of later steps, and also lines that were torn or damaged."""
    lines = metrics.read_bytes().splitlines(True)
    kept = [line for line in lines if _step_of(line, step + 1) <= step]
    staging = metrics.with_suffix(".tmp")
    staging.write_bytes(b"".join(kept))
    staging.replace(metrics)


def _step_of(line: bytes, otherwise: int) -> int:
    step = parse_line(line).get("step")
    return step if isinstance(step, int) else otherwise
