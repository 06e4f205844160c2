"""The chain of jobs of a run: `RUN/slurm/chain.json`, and cancelling it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.slurm import client

CANCELLED = "CANCELLED"


@dataclass(frozen=True)
class ChainJob:
    """One submitted job. tasks: how many the array has, 0 for a plain job."""

    stage: str
    job_id: str
    after: str | None
    tasks: int
    log: str


@dataclass(frozen=True)
class Chain:
    """One submit. submission: folder of its configuration, code and scripts."""

    run: str
    cluster: str
    revision: str
    submitted: str
    submission: str
    jobs: list[ChainJob]


def chain_path(run: Path) -> Path:
    return run / "slurm" / "chain.json"


def write_chain(chain: Chain) -> None:
    path = chain_path(Path(chain.run))
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(chain), indent=1) + "\n")
    temporary.rename(path)


def read_chain(run: Path) -> Chain | None:
    """The newest chain of a run, None if none was ever submitted."""
    path = chain_path(run)
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    jobs = [ChainJob(**job) for job in content.pop("jobs")]
    return Chain(**content, jobs=jobs)


def live_jobs(chain: Chain) -> list[tuple[ChainJob, str]]:
    """The jobs that still wait or run, each with its state."""
    live = []
    for job in chain.jobs:
        states = [record.state for record in client.records(job.job_id) or [] if record.is_live]
        if states:
            live.append((job, ", ".join(sorted(set(states)))))
    return live


def refuse_if_live(run: Path) -> None:
    """Raises ConfigError naming the jobs if an earlier submit of the run is still under way."""
    chain = read_chain(run)
    live = live_jobs(chain) if chain is not None else []
    if live:
        jobs = ", ".join(f"{job.stage} {job.job_id} ({state})" for job, state in live)
        raise ConfigError(
            f"{run} is submitted already: {jobs}. Watch it with `esolm status {run}`, or stop it "
            f"with `esolm cancel {run}`."
        )


def cancel_chain(run: Path) -> list[tuple[ChainJob, str]]:
    """Cancels what is live of a run and returns it; a job about to requeue itself does not.

    Raises ConfigError if the run was never submitted.
    """
    chain = read_chain(run)
    if chain is None:
        raise ConfigError(f"{run} was never submitted: there is no {chain_path(run)}")
    live = live_jobs(chain)
    if live:
        # A batch script looks for it before it requeues: scancel alone could come a moment early.
        (run / "slurm" / CANCELLED).touch()
        client.cancel([job.job_id for job, _ in reversed(live)])
    return live
