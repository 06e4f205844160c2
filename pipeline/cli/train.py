"""`esolm train`."""

from pathlib import Path
from typing import Annotated

import typer


def train_command(
    config: Annotated[Path, typer.Argument(help="Run configuration, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, over what the file says.")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1, help="Start this many ranks on this machine. Without it: this process is one."
        ),
    ] = None,
) -> None:
    """Train, or resume the run in run.dir in whatever layout the configuration now says.

    Exit codes: 0 done; 85 stopped on request, resume me; 64 bad configuration or data; 1 otherwise.

    Example: esolm train configs/run/demo.yaml --ranks 2 parallel.tp=2
    """
    import signal

    from esolm.pipeline.launch.stop import ignore_stop_signals, note_stop_signals

    # Before anything heavy: a request to stop may come at any moment.
    note_stop_signals((signal.SIGTERM, signal.SIGUSR1))

    from esolm.pipeline.launch.ranks import die_with_launcher, launch
    from esolm.pipeline.run.config import load_config

    die_with_launcher()
    given = overrides or []
    resolved = load_config(config, given)
    if ranks is None:
        from esolm.pipeline.train.run import train

        try:
            code = train(resolved)
        finally:  # a rank that leaves with an error, too, is to end with that error's code
            ignore_stop_signals()
        raise typer.Exit(code)
    from esolm.pipeline.parallel.bootstrap import check_build, check_gpus
    from esolm.pipeline.run.completion import complete_message, is_complete
    from esolm.pipeline.run.directory import RunDirectory
    from esolm.pipeline.run.experiment import resolve
    from esolm.pipeline.train.fp8 import check_fp8

    # One message for a bad configuration or a finished run, not one from each rank.
    resolve(resolved, ranks)
    directory = RunDirectory(resolved.run.dir)
    if is_complete(directory, resolved):
        typer.echo(complete_message(directory), err=True)
        return
    check_build()
    check_gpus(ranks)
    check_fp8(resolved.train)
    raise typer.Exit(launch(["train", str(config), *given], ranks))
