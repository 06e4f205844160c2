"""`esolm import`: a published checkpoint becomes a training checkpoint and a bundle."""

from pathlib import Path
from typing import Annotated

import typer


def import_command(
    file: Annotated[Path, typer.Argument(help="A published Lightning checkpoint, *.ckpt.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new directory: DIR/checkpoints and DIR/bundle.")
    ],
    variant: Annotated[
        str | None,
        typer.Option(metavar="A|B", help="Of an Eso-LM whose file does not say which it is."),
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="ema|raw", help="Of the bundle; the checkpoint keeps both.")
    ] = "ema",
    dtype: Annotated[
        str, typer.Option(metavar="bf16|fp32", help="How the bundle's weights are stored.")
    ] = "bf16",
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A tokenizer directory, ours or one of transformers."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(metavar="esolm|mdlm|ar|bd3lm", help="Of a file that holds no configuration."),
    ] = None,
    alpha_0: Annotated[float | None, typer.Option(help="Likewise, of an Eso-LM.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Likewise, of a BD3-LM.")] = None,
    length: Annotated[int | None, typer.Option(help="Likewise, tokens of a sequence.")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Likewise, attention heads.")] = None,
    mask_id: Annotated[
        int | None, typer.Option(help="The mask's row where it is not the last.")
    ] = None,
    bos_id: Annotated[
        int | None, typer.Option(help="The row of bos, where no tokenizer says it.")
    ] = None,
) -> None:
    """Import a published Eso-LM (A or B), AR, MDLM or BD3-LM checkpoint.

    DIR becomes a run directory, as esolm export reads it, with a bundle in DIR/bundle that has
    passed the gate of an export. Nothing in the file is executed. Exit code 64: the file cannot be
    imported; nothing is left behind.

    Example:

        esolm import esolm-b.ckpt --out imported/esolm-b --tokenizer tokenizers/gpt2
    """
    import logging

    from esolm.pipeline.importer.importing import import_checkpoint
    from esolm.pipeline.importer.recognise import Options

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("esolm.pipeline.export").setLevel(logging.INFO)
    options = Options(
        variant, weights, dtype, objective, alpha_0, block_size, length, num_heads, mask_id, bos_id
    )
    report = import_checkpoint(file, out, options, tokenizer)
    worst = max(report.export.gate["logit_parity"]["largest_difference"].values())
    typer.echo(
        f"{report.system}, step {report.network.step}, {report.export.parameters:,} parameters\n"
        f"checkpoint: {report.checkpoint}\n"
        f"bundle: {report.bundle}, {weights} weights, {dtype}, logits within {worst:.1e} of the "
        "training network"
    )
    for note in report.notes:
        typer.echo(f"note: {note}")
