"""Tells the state of a run from its files alone, without torch or a word from its processes."""

import statistics
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from esolm.pipeline.checkpoint.listing import CheckpointInfo, list_checkpoints
from esolm.pipeline.errors import EXIT_DONE, EXIT_RESUME_ME
from esolm.pipeline.run.beats import silent_ranks
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History, parse_line, read_lines
from esolm.pipeline.run.sections import RunConfig
from esolm.pipeline.watch.saves import save_problem

RECENT_LINES = 20
# A run is stalled once it has said nothing for this many of its usual pauses, and at the least
# for this many seconds.
SILENT_PAUSES, SILENT_SECONDS = 10, 60.0


@dataclass(frozen=True)
class Health:
    """How a run is doing.

    state: running, unsaved, stalled, stopped, failed, done or new. reason: what this is known by.
    For a run of jobs also starting, waiting or unattended, see `esolm.pipeline.slurm.attendance`.
    """

    state: str
    reason: str


@dataclass(frozen=True)
class RunStatus:
    """Everything that `esolm status` tells; a value is None if it is not known.

    loss: that of the last logged step. tokens_per_second: the median of the last logged steps.
    eta_seconds: the time that the remaining training steps take at that speed. checkpoint: the
    newest valid one. save_problem: what went wrong with those after it. damaged: the names of those
    that are not valid. restarts: the starts after the first. start_seconds: the time of the last
    start until its first step was done.
    """

    run: str
    health: Health
    resumable: bool
    step: int
    steps: int
    tokens: int | None
    loss: float | None
    valid_loss: float | None
    valid_loss_ema: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    checkpoint: CheckpointInfo | None
    checkpoint_age_seconds: float | None
    save_problem: str | None
    damaged: list[str]
    starts: int
    restarts: int
    start_seconds: float | None
    rollbacks: int
    layout: str | None
    slurm_job_id: str | None
    incidents: int
    last_incident: dict[str, Any] | None
    skipped_steps: int


def run_status(path: Path) -> RunStatus:
    """Reads the state of a run. Raises ConfigError if the path is no run directory."""
    directory = RunDirectory(path)
    config, history = directory.config(), History(directory)
    metrics, starts = _Metrics.read(directory.metrics), history.starts()
    checkpoints = list_checkpoints(directory.checkpoints)
    newest = next((c for c in reversed(checkpoints) if c.valid), None)
    incidents = read_lines(directory.incidents)
    step = max([metrics.last.get("step", 0), *(s.step for s in starts[-1:])])
    problem = save_problem(directory, config, step, newest.step if newest else 0)
    return RunStatus(
        run=str(path),
        health=_health(directory, config, history, metrics, newest, problem),
        resumable=newest is not None and not directory.is_finished(config.train.steps),
        step=step,
        steps=config.train.steps,
        tokens=metrics.last.get("tokens"),
        loss=metrics.last.get("loss"),
        valid_loss=metrics.validation.get("valid_loss"),
        valid_loss_ema=metrics.validation.get("valid_loss_ema"),
        tokens_per_second=metrics.median("tokens_per_second"),
        eta_seconds=metrics.seconds_of(config.train.steps - step),
        checkpoint=newest,
        checkpoint_age_seconds=None if newest is None else _age(newest.time),
        save_problem=problem,
        damaged=[c.name for c in checkpoints if not c.valid],
        starts=len(starts),
        restarts=max(0, len(starts) - 1),
        start_seconds=metrics.start.get("start_seconds"),
        rollbacks=len(history.rollbacks()),
        layout=starts[-1].layout if starts else None,
        slurm_job_id=starts[-1].slurm_job_id if starts else None,
        incidents=len(incidents),
        last_incident=incidents[-1] if incidents else None,
        skipped_steps=metrics.last.get("skipped_steps", 0),
    )


@dataclass(frozen=True)
class _Metrics:
    """The metrics of the last training steps, of the last validation and of the last start."""

    recent: list[dict[str, Any]]
    validation: dict[str, Any]
    start: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "_Metrics":
        """Reads the file's last lines of each kind.

        Lines are picked by their text and only the last are parsed, because a run may log for
        weeks.
        """
        steps: deque[bytes] = deque(maxlen=RECENT_LINES)
        validation = start = b""
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if b'"loss": ' in line and line.endswith(b"\n"):
                        steps.append(line)
                    elif b'"valid_loss": ' in line and line.endswith(b"\n"):
                        validation = line
                    elif b'"start_seconds": ' in line and line.endswith(b"\n"):
                        start = line
        parsed = (parse_line(line) for line in steps)
        recent = [entry for entry in parsed if isinstance(entry.get("step"), int)]
        return cls(recent, parse_line(validation), parse_line(start))

    @property
    def last(self) -> dict[str, Any]:
        return self.recent[-1] if self.recent else {}

    def median(self, name: str) -> float | None:
        values = [v for line in self.recent if isinstance(v := line.get(name), int | float)]
        return statistics.median(values) if values else None

    def seconds_of(self, num_steps: int) -> float | None:
        step = self.median("step_seconds")
        return None if step is None else max(0, num_steps) * step


def _health(
    directory: RunDirectory,
    config: RunConfig,
    history: History,
    metrics: _Metrics,
    newest: CheckpointInfo | None,
    save_problem: str | None,
) -> Health:
    if directory.is_locked():
        health = _alive(directory, config, metrics)
        if save_problem is None:
            return health
        state = "unsaved" if health.state == "running" else health.state
        return Health(state, f"{health.reason}, but {save_problem}")
    if directory.is_finished(config.train.steps):
        return Health("done", f"all {config.train.steps} steps")
    num_starts = len(history.starts())
    ends = [end for end in history.ends() if end.start == num_starts]
    if not num_starts:
        return Health("stopped" if newest else "new", "no process has trained here yet")
    if not ends:
        return Health("failed", "ended without a word: killed, or its node was lost")
    if ends[-1].exit_code == EXIT_RESUME_ME:
        return Health("stopped", f"on request at step {ends[-1].step}")
    if ends[-1].exit_code == EXIT_DONE:
        return Health("stopped", f"train.steps was raised after step {ends[-1].step}")
    return Health("failed", f"exit code {ends[-1].exit_code}: {ends[-1].reason}")


def _alive(directory: RunDirectory, config: RunConfig, metrics: _Metrics) -> Health:
    """Tells running from stalled, by each rank's signs of life and by what was written last."""
    if stopped := silent_ranks(directory):
        return Health("stalled", stopped)
    written = [directory.metrics, directory.path / ".lock", *directory.path.glob("logs/rank_*.log")]
    silent = time.time() - max(path.stat().st_mtime for path in written if path.exists())
    allowed = config.train.timeout_minutes * 60.0  # a start may take as long
    pause = metrics.median("step_seconds")
    if pause is not None and metrics.last["step"] < config.train.steps:
        pauses = SILENT_PAUSES * pause * config.train.log_every_steps
        allowed = min(allowed, max(SILENT_SECONDS, pauses))
    if silent > allowed:
        return Health(
            "stalled", f"nothing written for {silent:.0f} s, usually within {allowed:.0f}"
        )
    return Health("running", f"last written {silent:.0f} s ago")


def _age(moment: str) -> float:
    return max(0.0, time.time() - datetime.fromisoformat(moment).timestamp())
