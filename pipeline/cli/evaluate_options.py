"""The options of `esolm evaluate`: which go together, lists of numbers, and the line as typed."""

from collections.abc import Callable
from typing import TypeVar

import typer

Number = TypeVar("Number", int, float)

# Other options mean the same in both modes.
OF_SAMPLES = (
    "num_samples", "batch_size", "steps", "length", "top_p", "temperature", "judge", "featuriser",
    "out",
)  # fmt: skip
OF_LIKELIHOODS = (
    "draws", "orders", "orders_as", "samples_limit", "weights", "seq_len", "tokenizer",
    "tokens_per_pass", "ranks", "suite", "files", "clip_search", "packing",
)  # fmt: skip


def refuse_misplaced(context: typer.Context) -> None:
    """Raises ConfigError that names every option which was given and would have no effect."""
    from esolm.pipeline.errors import ConfigError

    given = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            given[parameter.name] = parameter.opts[0]

    def named(*names: str) -> str:
        return ", ".join(given[name] for name in names if name in given)

    samples = "samples" in given
    rules = {
        "means nothing with --samples": named(*OF_LIKELIHOODS) if samples else "",
        "goes with --samples": "" if samples else named(*OF_SAMPLES),
        "goes with --orders": "" if samples or "orders" in given else named("orders_as"),
        "goes with --suite": "" if samples or "suite" in given else named("files"),
        "goes with a DATASET": "" if "dataset" in given else named("split", "packing"),
        "(a DATASET) goes with --featuriser under --samples": named("dataset")
        if samples and "featuriser" not in given
        else "",
        "means nothing with --clip-search": named("orders", "orders_as")
        if "clip_search" in given
        else "",
    }
    if problems := [f"{options} {rule}" for rule, options in rules.items() if options]:
        raise ConfigError(problems)


def arguments_of(context: typer.Context, without: str) -> list[str]:
    """The command line that gives these parameters, one option left out."""
    positional, options = [], []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name == without or value is None or value == parameter.default:
            continue
        if parameter.param_type_name == "argument":
            positional.append(str(value))
        else:
            options += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return [*positional, *options]


def numbers(option: str, text: str | None, kind: Callable[[str], Number]) -> list[Number]:
    """Those of a list like 8,32,128; kind: `int` or `float`. Raises ConfigError."""
    from esolm.pipeline.errors import ConfigError

    try:
        return [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        wanted = "whole numbers, as in 8,32,128" if kind is int else "numbers, as in 0,0.25,1"
        raise ConfigError(f"{option} is '{text}'; give {wanted}") from None
