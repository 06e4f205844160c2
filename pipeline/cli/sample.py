"""`esolm sample`: texts of a run, with the order in which they were written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esolm.pipeline.cli import decoding_options as options

if TYPE_CHECKING:
    from rich.text import Text

    from esolm.pipeline.watch.samples import Piece


def sample_command(
    run: Annotated[
        Path, typer.Argument(help="A run directory (its newest checkpoint) or a checkpoint.")
    ],
    alpha_0: Annotated[float | None, options.ALPHA_0] = None,
    steps: Annotated[int, options.STEPS] = 16,
    length: Annotated[int | None, options.LENGTH] = None,
    prompt: Annotated[str, options.PROMPT] = "",
    top_p: Annotated[float, options.TOP_P] = 1.0,
    temperature: Annotated[float, options.TEMPERATURE] = 1.0,
    seed: Annotated[int, options.SEED] = 0,
    num_samples: Annotated[int, options.NUM_SAMPLES] = 2,
    weights: Annotated[
        str, typer.Option(metavar="ema|raw", help="The averaged weights or the last ones.")
    ] = "ema",
) -> None:
    """Write samples with a run's newest checkpoint, also while it trains.

    On a terminal, colours show the phases: the prompt bold, tokens of diffusion steps from dark to
    light as they were written, what was filled in left to right plain. Elsewhere each piece of a
    diffusion step stands as <number of the step|piece>. The texts also go to TensorBoard.

    Example:

        esolm sample runs/demo/train --prompt "def " --alpha-0 0.5 --steps 16
    """
    from rich.console import Console

    from esolm.pipeline.generate import Request
    from esolm.pipeline.watch.samples import marked, sample_run, write_to_tensorboard

    request = Request(alpha_0, steps, length, top_p, temperature, seed, num_samples, prompt)
    samples = sample_run(run, weights, request)
    console = Console(soft_wrap=True, highlight=False)
    for number, text in enumerate(samples.texts, start=1):
        typer.echo(f"--- sample {number} of {num_samples}, step {samples.step}")
        console.print(coloured(text)) if console.is_terminal else typer.echo(marked(text))
    typer.echo(f"--- {samples.nfe} forward passes (NFE)")
    if (run / "checkpoints").is_dir():
        write_to_tensorboard(samples, run / "tensorboard" / "samples")


def coloured(text: list["Piece"]) -> "Text":
    """For a terminal: the earlier a diffusion step, the darker."""
    from rich.text import Text

    from esolm.pipeline.watch.samples import PROMPT

    last = max((piece.number for piece in text if piece.parallel), default=0)
    shown = Text()
    for piece in text:
        style = "bold" if piece.number == PROMPT else ""
        if piece.parallel:
            level = 90 + 165 * piece.number // max(1, last)
            style = f"rgb(0,{level},{level})"
        shown.append(piece.text, style)
    return shown
