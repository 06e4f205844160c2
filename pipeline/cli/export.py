"""`esolm export`: a checkpoint becomes a self-verified bundle."""

from pathlib import Path
from typing import Annotated

import typer


def export_command(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A run (its newest checkpoint) or one checkpoint; a path or a URL."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The bundle to write.")],
    weights: Annotated[
        str, typer.Option(metavar="ema|raw", help="The averaged weights or the last ones.")
    ] = "ema",
    dtype: Annotated[
        str, typer.Option(metavar="bf16|fp32", help="How the weights are stored.")
    ] = "bf16",
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A tokenizer in place of the run's own.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR.")] = False,
) -> None:
    """Export a checkpoint as a transformers bundle that needs nothing of this repository.

    The bundle is checked before it gets its name; if a check fails, nothing is left behind.

    Example:

        esolm export runs/demo/train --out bundles/demo
    """
    import logging

    from esolm.pipeline.export.export import export

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("esolm.pipeline.export").setLevel(logging.INFO)
    report = export(checkpoint, out, weights, dtype, tokenizer, overwrite)
    typer.echo(
        f"{report.path}: {report.weights} weights of step {report.step}, "
        f"{report.parameters:,} parameters, {report.dtype}, {report.bytes:,} bytes\n"
        f"gate passed: {', '.join(report.gate)}; {report.accuracy}"
    )
