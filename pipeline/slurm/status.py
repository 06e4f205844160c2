"""What became of a chain: Slurm's own records, and what the jobs wrote down themselves."""

from dataclasses import dataclass
from pathlib import Path

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.slurm import client
from esolm.pipeline.slurm.chain import ChainJob, chain_path, read_chain

# Slurm forgets a job minutes after its end; what the job wrote down last stays.
_STATE_OF_EVENT = {"finished": "COMPLETED", "failed": "FAILED", "stopped": "CANCELLED"}
_UNSUCCESSFUL = client.FINAL_STATES - {"COMPLETED"}
# States of what its script would have told of, had it still been there.
_WITHOUT_A_WORD = client.FINAL_STATES - {"COMPLETED", "CANCELLED", "TIMEOUT", "DEADLINE"}
NO_ANSWER = "NO ANSWER"
_ORDER = ("RUNNING", "COMPLETING", "PENDING", "FAILED", "CANCELLED")


@dataclass(frozen=True)
class Event:
    """One line of RUN/slurm/events/STAGE.tsv. job: JOB, or ARRAY_TASK."""

    time: str
    job: str
    restart: int
    name: str
    detail: str


@dataclass(frozen=True)
class StageStatus:
    """One stage of the chain, for a table or JSON.

    state: as Slurm says (PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT ...), UNKNOWN if
    nobody does, NO ANSWER if Slurm cannot be asked. detail: why, and what came last.
    """

    stage: str
    job_id: str
    state: str
    detail: str
    restarts: int
    log: str


def chain_status(run: str | Path) -> list[StageStatus]:
    """The stages of a run's newest chain in their order.

    Raises ConfigError if the run was never submitted.
    """
    run = Path(run).resolve()
    chain = read_chain(run)
    if chain is None:
        raise ConfigError(f"{run} was never submitted: there is no {chain_path(run)}")
    silent = None
    statuses: list[StageStatus] = []
    for job in chain.jobs:
        told = _Told(None, [], silent)
        if client.why_missing() is None and silent is None:
            told = _ask(job)
            silent = told.silent
        statuses.append(_status_of(run, job, told, statuses))
    return statuses


@dataclass(frozen=True)
class _Told:
    """What Slurm says of a job: its records, else its accounts (None: it keeps none).

    silent: why it says nothing.
    """

    records: list[client.JobRecord] | None
    accounts: list[str] | None
    silent: str | None


def _ask(job: ChainJob) -> _Told:
    try:
        records = client.records(job.job_id, client.ANSWER_SECONDS)
    except client.SlurmError as error:
        return _Told(None, [], str(error).splitlines()[0])
    return _Told(records, [] if records else client.accounted_states(job.job_id), None)


def format_chain(statuses: list[StageStatus]) -> str:
    """One line per stage, as `esolm status` and `esolm submit` print it."""
    rows = [(s.stage, s.job_id, s.state, s.detail) for s in statuses]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        lines.append("  ".join([*cells, row[3]]).rstrip())
    return "\n".join(lines)


def read_events(run: Path, stage: str) -> list[Event]:
    """Everything that jobs of a stage wrote down, over all submits, oldest first."""
    events = []
    folder = run / "slurm" / "events"
    for path in [*folder.glob(f"{stage}.tsv"), *folder.glob(f"{stage}-*.tsv")]:
        for line in path.read_text(errors="replace").splitlines():
            words = line.split("\t", 4)
            # A node that dies, or a full disk, may leave half a line.
            if len(words) == 5 and words[2].isdigit():
                time, job, restart, name, detail = words
                events.append(Event(time, job, int(restart), name, detail))
    return sorted(events, key=lambda event: event.time)


def _status_of(
    run: Path,
    job: ChainJob,
    slurm: _Told,
    before: list[StageStatus],
) -> StageStatus:
    """By Slurm's records, else its accounts, else the job's last words."""
    last, records = _last_events(run, job), slurm.records
    if records:
        states = [record.state for record in records]
        restarts = sum(record.restarts for record in records)
    else:
        told = [_STATE_OF_EVENT.get(event.name, "UNKNOWN") for event in last.values()]
        states = slurm.accounts or told
        restarts = sum(event.restart for event in last.values())
    state = _overall(states) if states else "UNKNOWN"
    culprit = next((s for s in before if s.state in _UNSUCCESSFUL), None)
    detail = _detail(job, state, records, last)
    if not last and culprit is not None and state in ("CANCELLED", "UNKNOWN", "PENDING"):
        state, detail = "CANCELLED", f"never started, because {culprit.stage} did not succeed"
    if state == "UNKNOWN" and slurm.silent is not None:
        state, detail = NO_ANSWER, "; ".join([*filter(None, [detail]), slurm.silent])
    if state == "UNKNOWN" and slurm.accounts is None:
        forgotten = "Slurm has forgotten the job and keeps no accounts (sacct)"
        detail = f"{detail}; {forgotten}" if detail else forgotten
    return StageStatus(job.stage, job.job_id, state, detail, restarts, job.log)


def _last_words(record: client.JobRecord) -> str:
    """Of a job whose script wrote none into its events."""
    if record.comment:
        return record.comment
    how = f"{record.reason}, exit code and signal {record.exit_code}"
    return f"ended without a word ({how}): its batch script was killed; submit again"


def _last_events(run: Path, job: ChainJob) -> dict[str, Event]:
    """The last event of the job, or of each task of the array."""
    return {
        event.job: event
        for event in read_events(run, job.stage)
        if event.job.split("_")[0] == job.job_id
    }


def _overall(states: list[str]) -> str:
    """Of a plain job its own; an array is over when all tasks are, and as good as the worst."""
    for state in _ORDER:
        if state in states:
            return state
    return next((state for state in states if state != "COMPLETED"), "COMPLETED")


def _detail(
    job: ChainJob, state: str, records: list[client.JobRecord] | None, last: dict[str, Event]
) -> str:
    parts = []
    names = {event.name for event in last.values()}
    if job.tasks:
        done = sum(event.name == "finished" for event in last.values())
        parts.append(f"{done} of {job.tasks} tasks done")
        failed = {key: event for key, event in last.items() if event.name in ("failed", "stopped")}
        parts += [f"task {key.split('_')[-1]}: {event.detail}" for key, event in failed.items()]
    elif last:
        event = next(iter(last.values()))
        parts.append(f"{event.name}: {event.detail}")
    if records and state == "PENDING":
        parts.insert(0, f"waits ({records[0].reason})")
    if records and state in _WITHOUT_A_WORD and not _STATE_OF_EVENT.keys() & names:
        parts.insert(0, _last_words(records[0]))
    return "; ".join(parts)
