"""`esolm checkpoint`: list, verify and compare checkpoints."""

from typing import Annotated

import typer

app = typer.Typer(
    help="List, verify and compare checkpoints.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("ls")
def list_command(
    run: Annotated[str, typer.Argument(help="A run directory, or the URL of its mirror.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List a run's checkpoints: step, size, time of the commit, and whether they are whole.

    Whole means that the manifest holds and every file has its size; `verify` reads the contents.

    Example:

        esolm checkpoint ls runs/demo/train
    """
    import json
    from dataclasses import asdict

    from esolm.pipeline.checkpoint.listing import checkpoints_of

    found = checkpoints_of(run)
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in found], indent=1))
        return
    typer.echo(f"{'step':>12} {'bytes':>18} {'committed':<26} valid")
    for info in found:
        state = "yes" if info.valid else f"no: {info.damage}"
        typer.echo(f"{info.step:>12,} {info.bytes:>18,} {info.time:<26} {state}")


@app.command("verify")
def verify_command(
    path: Annotated[
        str,
        typer.Argument(help="A checkpoint, or a run for its newest one; a directory or a URL."),
    ],
) -> None:
    """Read every file of a checkpoint and compare its checksum with the manifest's.

    Exit code 64 names what is damaged.

    Example:

        esolm checkpoint verify runs/demo/train/checkpoints/step_00000120
    """
    from esolm.data_prep.progress import phase
    from esolm.pipeline.checkpoint.listing import verify
    from esolm.pipeline.errors import EXIT_BAD_INPUT

    with phase(f"read {path}"):
        directory, damage = verify(path)
    for problem in damage:
        typer.echo(f"damaged: {problem}", err=True)
    if damage:
        raise typer.Exit(EXIT_BAD_INPUT)
    typer.echo(f"{directory}: every file is as it was committed")


@app.command("diff")
def diff_command(
    a: Annotated[
        str, typer.Argument(help="A run (its newest checkpoint) or a checkpoint; also a URL.")
    ],
    b: Annotated[str, typer.Argument(help="Another one.")],
    limit: Annotated[int, typer.Option(help="Tensors shown of each state; 0: all.")] = 10,
) -> None:
    """Compare two checkpoints tensor by tensor, whatever layouts wrote them.

    Of each state: the tensors that only one has, those of unlike shapes, and the largest absolute
    difference of the others, the largest first. Exit code 0: equal bit by bit; 1: not.

    Example:

        esolm checkpoint diff runs/demo/train runs/other
    """
    from esolm.data_prep.progress import phase
    from esolm.pipeline.checkpoint.compare import compare
    from esolm.pipeline.checkpoint.reader import CheckpointReader

    equal = True
    with phase("read both checkpoints"):
        differences = list(compare(CheckpointReader(a), CheckpointReader(b)))
    for difference in differences:
        equal = equal and difference.equal
        typer.echo(difference.summary())
        for line in difference.lines(limit):
            typer.echo(f"  {line}")
    if not equal:
        raise typer.Exit(1)
    typer.echo("equal bit by bit")
