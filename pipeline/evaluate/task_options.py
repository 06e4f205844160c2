"""Translates what a generation task of lm-evaluation-harness asks for into terms of `generate`."""

from dataclasses import replace
from typing import Any

from esolm.pipeline.generate import Request


def share_out(length: int, context: list[int], max_new: int) -> tuple[list[int], int]:
    """Returns (the end of the context that fits, the tokens to write) for a sequence of `length`.

    A long context loses its beginning, as harness tasks expect. But if the length is short for what
    a task wants written, at least half of it is left to the context.
    """
    room = max(length - max_new, length // 2, 1)
    kept = context[-room:]
    return kept, min(max_new, length - len(kept))


def decoding_of(request: Request, options: dict[str, Any]) -> Request:
    """Returns the request with those of `do_sample`, `temperature` and `top_p` that a task sets."""
    if options.get("top_p") is not None:
        request = replace(request, top_p=float(options["top_p"]))
    do_sample, temperature = options.get("do_sample"), options.get("temperature")
    if do_sample is not None and not do_sample:
        return replace(request, temperature=0.0)
    if temperature is not None:
        return replace(request, temperature=float(temperature))
    if do_sample and not request.temperature:
        return replace(request, temperature=1.0)
    return request
