"""What a run reports: one JSON line per logged step, and the same as TensorBoard scalars."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class MetricsWriter:
    """Appends to metrics.jsonl and to the event files; rank 0 only.

    A run that resumes repeats the steps after its checkpoint: the lines of those steps are dropped
    from metrics.jsonl first, so that it holds each step once.
    """

    def __init__(self, metrics: Path, tensorboard: Path, resumed_step: int) -> None:
        if metrics.exists():
            _drop_after(metrics, resumed_step)
        self._file = metrics.open("a", buffering=1)
        self._events = SummaryWriter(str(tensorboard), purge_step=resumed_step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """values: numbers, or "n/a" for what is not known."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if not isinstance(value, str):
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _drop_after(metrics: Path, step: int) -> None:
    kept = []
    for line in metrics.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue  # the last line of a killed run may be cut short
    staging = metrics.with_suffix(".tmp")
    staging.write_text("".join(kept))
    staging.replace(metrics)
