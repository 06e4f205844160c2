"""`esolm status`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from esolm.pipeline.watch.status import RunStatus


def status_command(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how far a run is, how it fares and when it will be done.

    Reads files: it works from any machine that sees the run directory, and on a dead run. Of a
    submitted run Slurm is asked as well, for ten seconds at most.

    Example:

        esolm status runs/demo/train
    """
    import json
    from dataclasses import asdict

    from esolm.pipeline.watch.status import run_status

    submitted = (run / "slurm" / "chain.json").is_file()
    status = None
    if not submitted or (run / "config.yaml").is_file():
        status = run_status(run)
    chain = _chain(run) if submitted else None
    if status is not None and chain is not None:
        status = _with_jobs(run, status, chain)
    if status is not None and not as_json:
        for name, value in _rows(status):
            typer.echo(f"{name:<12}{value}")
    if as_json:
        record: dict[str, Any] = asdict(status) if status else {"run": str(run)}
        record["chain"] = None if chain is None else [asdict(stage) for stage in chain]
        typer.echo(json.dumps(record, indent=1))
    elif chain is not None:
        from esolm.pipeline.slurm.status import format_chain

        typer.echo(f"\n{format_chain(chain)}")


def _chain(run: Path) -> list[Any]:
    """The stages of the run's submitted jobs."""
    from esolm.pipeline.slurm.status import chain_status

    return list(chain_status(run))


def _with_jobs(run: Path, status: "RunStatus", chain: list[Any]) -> "RunStatus":
    """With a health that heeds what Slurm says of the training job."""
    from dataclasses import replace

    from esolm.pipeline.slurm.attendance import health_with_jobs
    from esolm.pipeline.watch.status import Health

    health = status.health
    found = health_with_jobs(run, health.state, health.reason, status.slurm_job_id, chain)
    return replace(status, health=Health(*found))


def _rows(status: "RunStatus") -> list[tuple[str, str]]:
    """The table: what, and its value in words."""
    share = status.step / status.steps
    rows = [
        ("run", status.run),
        ("health", f"{status.health.state} ({status.health.reason})"),
        ("step", f"{status.step:,} of {status.steps:,} ({share:.1%})"),
        ("tokens", _number(status.tokens, ",d")),
        ("loss", _number(status.loss, ".4f")),
        (
            "validation",
            f"{_number(status.valid_loss, '.4f')}, average {_number(status.valid_loss_ema, '.4f')}",
        ),
        ("speed", f"{_number(status.tokens_per_second, ',.0f')} tokens/s"),
        ("time left", _duration(status.eta_seconds)),
        ("checkpoint", _checkpoint(status)),
        ("starts", _starts(status)),
        ("incidents", _incidents(status)),
        ("layout", status.layout or "n/a"),
    ]
    if status.slurm_job_id is not None:
        rows.append(("Slurm job", status.slurm_job_id))
    return rows


def _starts(status: "RunStatus") -> str:
    text = f"{status.starts} ({status.restarts} restarts, {status.rollbacks} rollbacks)"
    if status.start_seconds is not None:
        text += f"; the last took {status.start_seconds:.1f} s to its first step"
    return text


def _checkpoint(status: "RunStatus") -> str:
    text = "none"
    if status.checkpoint is not None:
        age = _duration(status.checkpoint_age_seconds)
        text = f"step {status.checkpoint.step:,}, {age} ago, valid"
    if status.save_problem is not None:
        text += f"; {status.save_problem}"
    if status.damaged:
        text += f"; damaged: {', '.join(status.damaged)}"
    return text


def _incidents(status: "RunStatus") -> str:
    text = f"{status.incidents}, {status.skipped_steps} steps skipped"
    if status.last_incident is not None:
        text += f"; last at step {status.last_incident['step']}: {status.last_incident['reason']}"
    return text


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    """As in 3 d 04:05:06."""
    if seconds is None:
        return "n/a"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hour:02}:{minute:02}:{second:02}"
