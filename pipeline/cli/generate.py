"""`esolm generate`: text from a bundle."""

from pathlib import Path
from typing import Annotated

import typer


def generate_command(
    bundle: Annotated[Path, typer.Argument(help="A directory written by esolm export.")],
    alpha_0: Annotated[
        float | None,
        typer.Option(help="Share of tokens that an Eso-LM writes by diffusion, 0 to 1."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Diffusion steps; of a BD3-LM, in each block.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a sample, prompt included.")] = None,
    prompt: Annotated[str, typer.Option(help="How every sample begins.")] = "",
    top_p: Annotated[float | None, typer.Option(help="Nucleus; 1 keeps all tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    num_samples: Annotated[int, typer.Option(min=1, help="Samples, written as one batch.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also time decoding without the cache.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write text with the decoder of the network's objective, and its exact key/value cache.

    What is not given is taken from the bundle's generation_config.json. --alpha-0 means nothing to
    MDLM, BD3-LM and AR, --steps nothing to AR: they are ignored, with a note.

    Example:

        esolm generate bundles/demo --prompt "def " --alpha-0 0.5 --steps 32 --length 256 --compare
    """
    import json
    from dataclasses import asdict

    from esolm.pipeline import generate as decoding

    request = decoding.Request(
        alpha_0, steps, length, top_p, temperature, seed, num_samples, prompt
    )
    loaded = decoding.load_bundle(bundle)
    for name in decoding.ignored_options(loaded, request):
        objective = loaded.model.config.objective
        typer.echo(f"note: {name} means nothing to '{objective}' and is ignored", err=True)
    trained = loaded.record.get("seq_len")
    if length is not None and trained is not None and length > trained:
        typer.echo(f"note: --length {length} is beyond the {trained} tokens of training", err=True)
    with decoding.DecodingProgress() as progress:
        result = decoding.generate(loaded, request, streamer=progress)
    comparison = decoding.compare(loaded, request) if compare else None
    if as_json:
        record = {
            "texts": result.texts, "nfe": result.nfe, "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "compare": asdict(comparison) if comparison else None,
        }  # fmt: skip
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    for number, text in enumerate(result.texts, start=1):
        typer.echo(f"--- sample {number} of {num_samples}\n{text}")
    typer.echo(f"--- {result.nfe} forward passes (NFE), {result.tokens_per_second:,.0f} tokens/s")
    if comparison:
        typer.echo(
            f"cached {comparison.cached_seconds:.3f} s, uncached "
            f"{comparison.uncached_seconds:.3f} s (medians of {comparison.repeats}): "
            f"ratio {comparison.ratio:.2f}, same tokens"
        )
    elif compare:
        typer.echo("no cache to compare: this network reads in both directions in every pass")
