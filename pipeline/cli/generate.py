"""`esolm generate`: text from a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esolm.pipeline.cli import decoding_options as options

if TYPE_CHECKING:
    from esolm.pipeline.generate import Bundle, Request

# Options that mean nothing beside others, and why.
ONE_TEXT, ONE_BATCH = "shows a single text", "times a single batch"
OF_GAPS = "says how long a text is, and so do its gaps"
MISFITS = {
    "--stream": (("--prompts", "--infill", "--num-samples", "--json"), ONE_TEXT),
    "--compare": (("--prompts", "--infill"), ONE_BATCH),
    "--length": (("--infill",), OF_GAPS),
    "--max-new-tokens": (("--infill",), OF_GAPS),
}


def generate_command(
    bundle: Annotated[Path, typer.Argument(help="A directory written by esolm export.")],
    alpha_0: Annotated[float | None, options.ALPHA_0] = None,
    steps: Annotated[int | None, options.STEPS] = None,
    schedule: Annotated[str | None, options.SCHEDULE] = None,
    length: Annotated[int | None, options.LENGTH] = None,
    max_new_tokens: Annotated[int | None, options.MAX_NEW_TOKENS] = None,
    prompt: Annotated[str, options.PROMPT] = "",
    prompts: Annotated[Path | None, options.PROMPTS] = None,
    infill: Annotated[str | None, options.INFILL] = None,
    top_p: Annotated[float | None, options.TOP_P] = None,
    top_k: Annotated[int | None, options.TOP_K] = None,
    temperature: Annotated[float | None, options.TEMPERATURE] = None,
    guesses: Annotated[int | None, options.GUESSES] = None,
    adaptive: Annotated[bool | None, options.ADAPTIVE] = None,
    dtype: Annotated[str | None, options.DTYPE] = None,
    seed: Annotated[int, options.SEED] = 0,
    num_samples: Annotated[int, options.NUM_SAMPLES] = 1,
    cuda_graphs: Annotated[bool | None, options.CUDA_GRAPHS] = None,
    ignore_eos: Annotated[bool, options.IGNORE_EOS] = False,
    stream: Annotated[bool, options.STREAM] = False,
    compare: Annotated[bool, options.COMPARE] = False,
    as_json: Annotated[bool, options.AS_JSON] = False,
) -> None:
    """Write text with the decoder of the network's objective, and its exact key/value cache.

    What is not given is taken from the bundle's generation_config.json. --alpha-0 means nothing to
    MDLM, BD3-LM and AR, --steps nothing to AR: they are ignored, with a note.

    Example:

        esolm generate bundles/demo --prompt "def " --alpha-0 0.5 --steps 32 --length 256 --compare

        esolm generate bundles/demo --infill "def f(x):[[8]]return [[1-4]]"

        esolm generate bundles/demo --prompts prompts.txt --max-new-tokens 64 --json
    """
    from esolm.pipeline import generate as decoding
    from esolm.pipeline.errors import ConfigError

    ways = {"--prompt": bool(prompt), "--prompts": prompts is not None, "--infill": bool(infill)}
    given = {
        "--stream": stream, "--compare": compare, "--json": as_json,
        "--num-samples": num_samples > 1, "--length": length is not None,
        "--max-new-tokens": max_new_tokens is not None,
    }  # fmt: skip
    if wrong := _misfits([name for name, is_set in (ways | given).items() if is_set]):
        raise ConfigError("; ".join(wrong))
    request = decoding.Request(
        alpha_0, steps, length, top_p, temperature, seed, num_samples, prompt, schedule, top_k,
        max_new_tokens, guesses, cuda_graphs, ignore_eos, adaptive,
    )  # fmt: skip
    loaded = decoding.load_bundle(bundle, dtype)
    for note in _notes(loaded, request):
        typer.echo(f"note: {note}", err=True)
    if infill:
        _fill(loaded, request, infill, as_json)
    elif prompts is not None:
        _write_all(loaded, request, prompts, as_json)
    else:
        _write(loaded, request, stream, compare, as_json)


def _misfits(given: list[str]) -> list[str]:
    """What is wrong with options that were given together."""
    ways = [name for name in ("--prompt", "--prompts", "--infill") if name in given]
    wrong = [f"{' and '.join(ways)} were given: name one of them"] if len(ways) > 1 else []
    for name, (others, reason) in MISFITS.items():
        if name in given and (found := [other for other in others if other in given]):
            wrong.append(f"{name} {reason}: leave it out, or {' and '.join(found)}")
    return wrong


def _notes(bundle: "Bundle", request: "Request") -> list[str]:
    """What is given and means nothing, or is beyond what was trained."""
    from esolm.pipeline.generate import ignored_options

    objective, trained = bundle.model.config.objective, bundle.record.get("seq_len")
    names = ignored_options(bundle, request)
    notes = [f"{name} means nothing to '{objective}' and is ignored" for name in names]
    defaults = bundle.model.generation_config
    guesses = defaults.guesses if request.guesses is None else request.guesses
    if request.adaptive and not guesses:
        notes.append("--adaptive means nothing without --guesses and is ignored")
    if request.length is not None and trained is not None and request.length > trained:
        notes.append(f"--length {request.length} is beyond the {trained} tokens of training")
    return notes


def _write(
    bundle: "Bundle", request: "Request", stream: bool, compare: bool, as_json: bool
) -> None:
    import json
    from dataclasses import asdict

    from esolm.pipeline import generate as decoding

    shown: Any = decoding.PrintedText(bundle) if stream else decoding.DecodingProgress()
    with shown as streamer:
        result = decoding.generate(bundle, request, streamer=streamer)
    comparison = decoding.compare(bundle, request) if compare else None
    if as_json:
        record = {
            "texts": result.texts, "nfe": result.nfe, "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
            "compare": asdict(comparison) if comparison else None,
        }  # fmt: skip
        typer.echo(json.dumps(record, ensure_ascii=False))
        return
    for number, text in enumerate([] if stream else result.texts, start=1):
        typer.echo(f"--- sample {number} of {request.num_samples}\n{text}")
    typer.echo(f"--- {result.nfe} forward passes (NFE), {result.tokens_per_second:,.0f} tokens/s")
    if comparison:
        typer.echo(
            f"cached {comparison.cached_seconds:.3f} s, uncached "
            f"{comparison.uncached_seconds:.3f} s (medians of {comparison.repeats}): "
            f"ratio {comparison.ratio:.2f}, same tokens"
        )
    elif compare:
        typer.echo("no cache to compare: this network reads in both directions in every pass")


def _fill(bundle: "Bundle", request: "Request", text: str, as_json: bool) -> None:
    import json
    from dataclasses import replace

    from esolm.pipeline.generate_many import fill

    for number in range(request.num_samples):
        filled = fill(bundle, replace(request, seed=(request.seed or 0) + number), text)
        if as_json:
            typer.echo(json.dumps(filled.__dict__, ensure_ascii=False))
            continue
        typer.echo(f"--- sample {number + 1} of {request.num_samples}\n{filled.text}")
        gaps = ", ".join(map(str, filled.lengths))
        typer.echo(f"--- {filled.nfe} forward passes (NFE), tokens of the gaps: {gaps}")


def _write_all(bundle: "Bundle", request: "Request", path: Path, as_json: bool) -> None:
    import json

    from esolm.pipeline.generate_many import read_prompts, write_all

    texts, samples = read_prompts(path), request.num_samples
    for number, (prompt, text) in enumerate(write_all(bundle, request, texts)):
        if as_json:
            typer.echo(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
            continue
        sample = f", sample {number % samples + 1} of {samples}" if samples > 1 else ""
        head = f"prompt {number // samples + 1} of {len(texts)}{sample}"
        typer.echo(f"--- {head}\n{prompt}{text}")
