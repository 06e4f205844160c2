"""Runs that the tests submit to the cluster, and what can be seen of them."""

import json
import re
import subprocess
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from esolm.pipeline.cli.main import app
from esolm.pipeline.slurm.chain import Chain
from esolm.pipeline.slurm.status import Event, read_events
from esolm.pipeline.slurm.submit import prepare, submit
from tests.processes import run_python
from tests.slurm.cluster import MiniCluster

PROFILE = """
partition: low
tasks_per_node: {tasks}
cpus_per_task: 1
time: "0-00:10"
warn_seconds: 10
exit_seconds: 60
cpu: {{cpus_per_task: 1, time: "0-00:10", concurrent_tasks: 2}}
health: {{min_free_gb: 0.01}}
"""
CONFIG = """
run: {{dir: {run}}}
data: {{path: {data}}}
model: {{hidden_size: 64, num_layers: 2, num_heads: 4, ffn_hidden_size: 128, cond_dim: 16}}
train:
  {{steps: {steps}, global_batch_size: 8, micro_batch_size: 1, seq_len: 32, precision: fp32,
   log_every_steps: 1, timeout_minutes: 2}}
optimizer: {{lr: 1.0e-3, warmup_steps: 2}}
checkpoint: {{every_steps: {save_every}, keep: 2, asynchronous: {asynchronous}}}
"""


def write_profile(folder: Path, *, tasks: int = 1, extra: str = "") -> Path:
    """A profile of the mini cluster; extra: more lines of YAML."""
    path = folder / f"mini_{tasks}.yaml"
    path.write_text(PROFILE.format(tasks=tasks) + extra)
    return path


def write_run(
    folder: Path, data: Path, *, steps: int, save_every: int = 100_000, asynchronous: bool = True
) -> Path:
    """A run configuration; its run directory is `run` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(
        CONFIG.format(
            run=folder / "run",
            data=data,
            steps=steps,
            save_every=save_every,
            asynchronous=str(asynchronous).lower(),
        )
    )
    return path


def esolm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command itself, as a user types it."""
    return run_python("-m", "esolm", *arguments, timeout=120)


def submit_run(
    config: Path, profile: Path, *overrides: str, stages: tuple[str, ...] = ("train",)
) -> Chain:
    """`esolm submit`, in this process to save the seconds of its start."""
    return submit(prepare(config, list(overrides), str(profile), list(stages)))


def submit_stub(
    folder: Path, dataset: Path, stub: str, *overrides: str, setup: tuple[str, ...] = ()
) -> str:
    """A training job in which a few lines of shell stand in for the interpreter.

    setup: lines of shell at the top of the batch script.
    """
    config = write_run(folder, dataset, steps=100)
    program = write_program(folder / "python", f"{stub.format(run=folder / 'run')}\n")
    profile = write_profile(folder, extra=f"python: {program}\nsetup: {json.dumps(setup)}\n")
    profile.write_text(profile.read_text().replace("health: {", "health: {enabled: false, "))
    return job_of(submit_run(config, profile, *overrides))


def write_program(path: Path, text: str) -> Path:
    """A script in bash."""
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)
    return path


def job_of(chain: Chain, stage: str = "train") -> str:
    return next(job.job_id for job in chain.jobs if job.stage == stage)


def logged_steps(run: Path) -> list[int]:
    """Every step whose loss rank 0 logged, in the order of the log: over restarts, repeats too."""
    return [step for _, step in _log(run)]


def pauses(run: Path, count: int) -> str:
    """Seconds of the longest pauses between two steps, one for each restart, in their order."""
    times = [time for time, _ in _log(run)]
    seconds = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    shortest = sorted(seconds)[-count]
    return ", ".join(f"{pause:.0f}" for pause in seconds if pause >= shortest) + " s"


def answers(run: Path) -> str:
    """Seconds from each USR1 to the batch script to its requeue."""
    asked, requeued = (
        [datetime.fromisoformat(event.time) for event in events(run, name)]
        for name in ("asked", "requeued")
    )
    seconds = [(end - begin).total_seconds() for begin, end in zip(asked, requeued, strict=True)]
    return ", ".join(f"{answer:.0f}" for answer in seconds) + " s"


def _log(run: Path) -> list[tuple[datetime, int]]:
    """When each step was logged."""
    log = run / "logs" / "rank_0.log"
    text = log.read_text() if log.exists() else ""
    found = re.findall(r"^(\S+ \S+) INFO step (\d+): loss ", text, re.MULTILINE)
    return [(datetime.fromisoformat(time), int(step)) for time, step in found]


def newest_step(run: Path) -> int:
    return max(logged_steps(run), default=0)


def wait_for(cluster: MiniCluster, run: Path, condition: Callable[[], Any], what: str) -> None:
    """Until the condition holds; says what the run wrote down if it never does."""
    try:
        cluster.wait_until(condition, what, 600)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{explain(run)}") from None


def wait_for_step(cluster: MiniCluster, run: Path, step: int) -> None:
    wait_for(cluster, run, lambda: newest_step(run) >= step, f"step {step}")


def wait_for_requeues(cluster: MiniCluster, run: Path, count: int = 1) -> None:
    """Until the batch script has asked for them; Slurm's own requeues do not count."""
    wait_for(cluster, run, lambda: len(events(run, "requeued")) >= count, f"{count} requeues")


def events(run: Path, name: str, stage: str = "train") -> list[Event]:
    """What the jobs of a stage wrote down under a name."""
    return [event for event in read_events(run, stage) if event.name == name]


def health(run: Path) -> dict[str, str]:
    """State and reason as `esolm status` has them; in this process to save its start."""
    shown = CliRunner().invoke(app, ["status", str(run), "--json"])
    assert shown.exit_code == 0, shown.output
    found: dict[str, str] = json.loads(shown.output)["health"]
    return found


def explain(run: Path, stage: str = "train") -> str:
    """What there is to read when something did not happen."""
    lines = [f"{e.time} {e.job} {e.name} {e.detail}" for e in read_events(run, stage)]
    for log in sorted((run / "slurm" / "logs").glob(f"{stage}*.log")):
        lines += ["", str(log), log.read_text()[-3000:]]
    return "\n".join(lines)


def wait_for_end(cluster: MiniCluster, run: Path, job_id: str) -> None:
    """Until the job has completed, which is what a finished run's does."""
    try:
        cluster.wait_for_state(job_id, "COMPLETED")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{explain(run)}") from None
    assert (run / "DONE").exists()
