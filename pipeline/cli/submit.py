"""`esolm submit` and `esolm cancel`: the whole chain on a Slurm cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from esolm.pipeline.slurm.chain import Chain
    from esolm.pipeline.slurm.submit import Submission


def submit_command(
    config: Annotated[Path, typer.Argument(help="Run configuration, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, over what the file says.")
    ] = None,
    cluster: Annotated[
        str, typer.Option(metavar="NAME", help="configs/cluster/NAME.yaml, or a YAML file's path.")
    ] = ...,  # type: ignore[assignment]
    stages: Annotated[
        str, typer.Option(help="Some of prep,train,evaluate,export,serve.")
    ] = "prep,train,evaluate,export",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the scripts, queue nothing.")
    ] = False,
) -> None:
    """Queue a run on a Slurm cluster: prep array, merge, train, evaluate, export, serve.

    Everything is checked first, against the live cluster too; then all jobs are queued or none.
    What is finished already is skipped, so after a failure submit again.

    Example: esolm submit configs/run/demo.yaml --cluster cpu --stages train,export --dry-run
    """
    from esolm.pipeline.slurm.submit import prepare, submit

    wanted = [stage.strip() for stage in stages.split(",") if stage.strip()]
    submission = prepare(config, overrides or [], cluster, wanted)
    for note in submission.notes:
        typer.echo(note, err=True)
    if not submission.jobs:
        typer.echo("nothing is left to do")
    elif dry_run:
        _echo_scripts(submission)
    else:
        _echo_chain(submit(submission))


def cancel_command(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
) -> None:
    """Cancel every job of a run that waits or runs; none of them requeues itself.

    Training stops where it is, at worst losing what came after the last checkpoint.

    Example: esolm cancel runs/demo/train
    """
    from esolm.pipeline.slurm.chain import cancel_chain

    cancelled = cancel_chain(run.resolve())
    for job, state in cancelled:
        typer.echo(f"{job.stage}: job {job.job_id} cancelled (it was {state})")
    if not cancelled:
        typer.echo("no job of the run waits or runs")


def _echo_scripts(submission: "Submission") -> None:
    for stage, script in submission.scripts.items():
        typer.echo(f"##### {stage}.sbatch\n{script}")
    chain = " -> ".join(submission.scripts)
    typer.echo(f"would queue {chain} for {submission.paths.run}; nothing was queued", err=True)


def _echo_chain(chain: "Chain") -> None:
    for job in chain.jobs:
        tasks = f", {job.tasks} tasks" if job.tasks else ""
        after = f", after {job.after}" if job.after else ""
        typer.echo(f"{job.stage}: job {job.job_id}{tasks}{after}")
    typer.echo(
        f"\nwatch:   esolm status {chain.run}\n"
        f"jobs:    squeue --jobs={','.join(job.job_id for job in chain.jobs)}\n"
        f"logs:    {chain.run}/slurm/logs\n"
        f"metrics: {chain.run}/metrics.jsonl\n"
        f"stop:    esolm cancel {chain.run}"
    )
