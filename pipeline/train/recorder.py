"""Records a run: for a person, in metrics.jsonl, for TensorBoard, in incidents.jsonl."""

import logging
from typing import Any, Self

from esolm.pipeline.parallel.engine import StepResult
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History, append_line
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.train.metrics import MetricsWriter, Reports
from esolm.pipeline.train.progress import Progress
from esolm.pipeline.train.progress_bar import ProgressReport

logger = logging.getLogger(__name__)


class Recorder:
    """Writes on rank 0 and is silent on the others."""

    def __init__(self, directory: RunDirectory, config: RunConfig, step: int, rank: int) -> None:
        self._directory, self._config = directory, config
        self._writer: MetricsWriter | None = None
        self._reports = Reports()
        if rank == 0:
            # A run without a checkpoint validates anew, so its old report of step 0 is dropped.
            self._writer = self._write_after(step if step > 0 else -1)
        self._report = ProgressReport(config.train.steps, step, rank == 0)

    def __enter__(self) -> Self:
        self._report.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._report.__exit__()
        if self._writer is not None:
            self._writer.close()

    def advance(self, step: int) -> None:
        self._report.advance(step)

    def record(self, step: int, figures: dict[str, Any]) -> None:
        """Records the figures of a step: numbers by name, or "n/a" for what is not known."""
        self._report.show(step, figures)
        if self._writer is not None:
            self._writer.write(step, figures)

    def rewind(self, from_step: int, progress: Progress) -> None:
        """Forgets what was recorded after the step gone back to, and notes the rollback."""
        step = progress.step
        self._report.advance(step)
        if self._writer is not None:
            global_batch_size = self._config.train.global_batch_size
            self._reports.attempt(
                "rollbacks.jsonl",
                lambda: History(self._directory).roll_back(
                    from_step, step, progress.consumed_samples, global_batch_size
                ),
            )
            self._writer.close()
            self._writer = self._write_after(step)

    def incident(self, step: int, first_sample: int, reason: str, result: StepResult) -> None:
        """Notes a step whose update was not applied, with all that its draws are keyed by."""
        logger.warning("step %d was not applied: %s", step, reason)
        if self._writer is None:
            return
        entry = {
            "step": step,
            "reason": reason,
            "policy": self._config.train.spike_policy,
            "losses": {name: _json_number(loss) for name, loss in result.losses.items()},
            "grad_norm": _json_number(result.grad_norm),
            "seed": self._config.seed,
            "first_sample": first_sample,
            "global_batch_size": self._config.train.global_batch_size,
        }
        self._reports.attempt(
            "incidents.jsonl", lambda: append_line(self._directory.incidents, entry)
        )

    def _write_after(self, step: int) -> MetricsWriter:
        directory = self._directory
        return MetricsWriter(directory.metrics, directory.tensorboard, step, self._reports)


def _json_number(value: float) -> float | str:
    """Returns the value, or its text if it is not finite: JSON has no infinities."""
    return value if abs(value) < float("inf") else str(value)
