"""How a run fares by what its files say and by what Slurm says of its training job together."""

from datetime import UTC, datetime
from pathlib import Path

from esolm.pipeline.run.beats import SILENT_SECONDS, silence
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History
from esolm.pipeline.slurm.client import FINAL_STATES
from esolm.pipeline.slurm.status import StageStatus, read_events

ALIVE = ("running", "unsaved", "stalled")


def health_with_jobs(
    run: Path, state: str, reason: str, started_by: str | None, stages: list[StageStatus]
) -> tuple[str, str]:
    """State and reason of a run, corrected by its jobs.

    state, reason: by the files alone. started_by: the Slurm job of the run's last start. Adds to
    the states of files: waiting, a job is in the queue; starting, it has its nodes, but its ranks
    do not train yet; ending, they have left, and its script decides whether they come back;
    unattended, the ranks train, but nobody would start them again.
    """
    train = next((stage for stage in stages if stage.stage == "train"), None)
    if train is None or state == "done":
        return state, reason
    job = f"job {train.job_id}"
    if state in ALIVE:
        if started_by == train.job_id and (problem := _unattended(run, train)):
            return "unattended", f"{reason}, but {problem}"
    elif _is_forgotten(run, train):
        return "unattended", (
            f"Slurm has {job} RUNNING, but its script has ended: the controller died before it "
            f"saved the requeue that it had granted; scontrol requeue {train.job_id}"
        )
    elif train.state == "PENDING" or _is_requeued(train):
        return "waiting", f"{job} {train.detail}"
    elif train.state == "RUNNING" and _have_left(run, train.job_id):
        return "ending", f"{reason}; the script of {job} decides whether to start again"
    elif train.state in ("RUNNING", "CONFIGURING"):
        return "starting", f"{job} has its nodes; {train.detail or 'its script begins'}"
    return state, reason


def _is_requeued(train: StageStatus) -> bool:
    """Whether a job that still leaves its nodes is to come back."""
    return train.state in ("RUNNING", "COMPLETING") and train.detail.startswith("requeued: ")


def _is_forgotten(run: Path, train: StageStatus) -> bool:
    """Whether a requeue that the script saw granted a minute ago is none for Slurm."""
    last = [event for event in read_events(run, "train") if event.job == train.job_id][-1:]
    if train.state != "RUNNING" or not last or last[0].name != "requeued":
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(last[0].time)
    return train.restarts == last[0].restart and age.total_seconds() > SILENT_SECONDS


def _have_left(run: Path, job_id: str) -> bool:
    """Whether the ranks of the newest start of a job have trained, and do so no longer."""
    starts = History(RunDirectory(run)).starts()
    told = [event for event in read_events(run, "train") if event.job == job_id]
    began = [event.time for event in told if event.name == "training"]
    if not began or told[-1].name not in ("training", "asked"):
        return False
    if not starts or starts[-1].slurm_job_id != job_id:
        return False
    return datetime.fromisoformat(starts[-1].time) >= datetime.fromisoformat(began[-1])


def _unattended(run: Path, train: StageStatus) -> str | None:
    """Why nobody would start the ranks again, None if somebody would."""
    if train.state in FINAL_STATES:
        return f"job {train.job_id} is over ({train.state}): stop the ranks, then submit again"
    script = run / "slurm" / f"alive_{train.job_id}"
    if train.state == "RUNNING" and script.exists() and silence(script) > SILENT_SECONDS:
        return (
            f"the batch script of job {train.job_id} has given no sign of life for "
            f"{silence(script):.0f} s: stopped, or its node is frozen; "
            f"try scancel --batch --signal=CONT {train.job_id}"
        )
    return None
