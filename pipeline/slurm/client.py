"""Slurm's own commands, and what they say."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from esolm.pipeline.errors import EsolmError

TIMEOUT_SECONDS = 120
# For who only looks; a controller or munge that is down is asked in vain for a minute by itself.
ANSWER_SECONDS = 10
PROGRAMS = ("sbatch", "scontrol", "squeue", "scancel", "sinfo")
# A job in any other state may still come to something.
FINAL_STATES = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "TIMEOUT",
}  # fmt: skip


class SlurmError(EsolmError):
    """A command of Slurm's failed."""


@dataclass(frozen=True)
class JobRecord:
    """One job, or one task of an array, as Slurm has it now."""

    job_id: str
    task: str
    """Number in the array, a range of them while they wait together, or empty."""
    state: str
    reason: str
    restarts: int
    nodes: str
    exit_code: str
    """CODE:SIGNAL."""
    comment: str
    """Where a job writes its last words when its disk is full."""

    @property
    def is_live(self) -> bool:
        return self.state not in FINAL_STATES


def why_missing() -> str | None:
    """Why this machine belongs to no cluster, None if it does."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"no Slurm on this machine ({', '.join(missing)} not found)" if missing else None


def why_unavailable() -> str | None:
    """Why no cluster can be asked from here, None if one answers."""
    if reason := why_missing():
        return reason
    try:
        call("scontrol", "ping")
    except SlurmError as error:
        return f"no Slurm controller answers here ({str(error).splitlines()[0]})"
    return None


def call(*command: str, text: str | None = None, seconds: float = TIMEOUT_SECONDS) -> str:
    """Output of one of Slurm's commands. Raises SlurmError with what it said if it fails."""
    try:
        finished = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]}: no answer within {seconds:g} s") from error
    except OSError as error:
        raise SlurmError(f"{command[0]}: {error}") from error
    if finished.returncode != 0:
        message = (finished.stderr or finished.stdout).strip()
        raise SlurmError(f"{' '.join(command[:3])}: {message}")
    return finished.stdout


def test_only(script: str) -> str | None:
    """Why sbatch would refuse a script, None if it would not; nothing is queued."""
    try:
        call("sbatch", "--test-only", text=script)
    except SlurmError as error:
        return str(error)
    return None


def submit(script: Path, after: str | None) -> str:
    """Queues a script, after another job if given; returns the job's id."""
    options = ["--parsable"]
    if after is not None:
        # Without the second one, what waits for a failed job waits for ever.
        options += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    return call("sbatch", *options, str(script)).strip().split(";")[0]


def cancel(job_ids: list[str]) -> None:
    """Cancels jobs; those that are over already are no error."""
    call("scancel", "--quiet", *job_ids)


def records(job_id: str, seconds: float = TIMEOUT_SECONDS) -> list[JobRecord] | None:
    """The job, or the tasks of the array; None if Slurm has forgotten it.

    Raises SlurmError if it does not answer within so many seconds.
    """
    command = ("scontrol", "--oneliner", "show", "job", job_id)
    try:
        lines = call(*command, seconds=seconds).splitlines()
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return [_record(line) for line in lines if line.startswith("JobId=")]


def accounted_states(job_id: str) -> list[str] | None:
    """States of the job, or of the array's tasks, in Slurm's accounts; None if it keeps none."""
    try:
        lines = call("sacct", "-nXP", "-j", job_id, "-o", "JobID,State").splitlines()
    except SlurmError:
        return None
    # As in "123_4|CANCELLED by 1000".
    return [line.split("|")[1].split()[0] for line in lines if "|" in line]


def fields(line: str) -> dict[str, str]:
    """`Key=value` words of a line of scontrol's."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _record(line: str) -> JobRecord:
    found = fields(line)
    comment = re.search(r" Comment=(.*?)(?= [A-Z][\w:/]*=|$)", line)
    return JobRecord(
        job_id=found["JobId"],
        task=found.get("ArrayTaskId", ""),
        state=found["JobState"],
        reason=found.get("Reason", "None"),
        restarts=int(found.get("Restarts", "0")),
        nodes=found.get("NodeList", "(null)"),
        exit_code=found.get("ExitCode", "0:0"),
        comment=comment[1] if comment else "",
    )
