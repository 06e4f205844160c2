"""Which stages there are, and how each is built from the words that name it."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from esolm.data_prep.cleaning import Stage
from esolm.data_prep.cleaning.contamination import decontamination
from esolm.data_prep.cleaning.with_datatrove import (
    FILTERS,
    filter_stage,
    language_stage,
    scrubbing_stage,
)
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import fingerprint_of
from esolm.data_prep.sources import absolute

BUILDERS: dict[str, Callable[[str, str], Stage]] = {
    **dict.fromkeys(FILTERS, filter_stage),
    "language": language_stage,
    "pii": scrubbing_stage,
    "decontaminate": decontamination,
}
"""By what stands before `=` in the words that name a stage."""


@lru_cache(maxsize=8)
def build_stages(asked: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages of `--clean` in their order.

    Raises DataError, which names every stage that there is not, or that cannot be built.
    """
    stages, problems = [], []
    for words in asked:
        try:
            stages.append(_build(words))
        except DataError as error:
            problems.append(str(error))
    if len(set(asked)) < len(asked):
        problems.append("--clean names a stage twice; drop one.")
    if problems:
        raise DataError("\n".join(problems))
    return tuple(stages)


def inputs_of(words: str) -> list[str]:
    """Return the files that the words of a stage name."""
    name, _, argument = words.partition("=")
    if name == "decontaminate":
        return argument.split(",")
    model = argument.partition("@")[2] if name == "language" else ""
    return [model] if model else []


def with_absolute_inputs(words: str) -> str:
    """Return the words of a stage as they mean the same in any folder."""
    name, _, argument = words.partition("=")
    given = inputs_of(words)
    if not given:
        return words
    kept = argument.removesuffix(",".join(given))
    return f"{name}={kept}{','.join(map(absolute, given))}"


def fingerprints_of(stages: Sequence[Stage]) -> list[list[str]]:
    """Return what must be the same for the stages to give the same results."""
    return [[stage.name, stage.fingerprint] for stage in stages]


def _build(words: str) -> Stage:
    name, _, argument = words.partition("=")
    if name in BUILDERS:
        return BUILDERS[name](words, argument)
    if ":" in words:
        return _own(words)
    raise DataError(
        f"--clean '{words}' is no stage. There are {', '.join(BUILDERS)}, or the import path of a "
        "function, PACKAGE.MODULE:FUNCTION."
    )


def _own(words: str) -> Stage:
    module_name, _, name = words.partition(":")
    module = _import(module_name, words)
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"--clean {words}: {module_name} has no function {name}.")
    changes_text = bool(getattr(function, "changes_text", True))
    return Stage(words, function, changes_text, fingerprint_of(_source_of(module)))


def _import(name: str, words: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        advice = (
            "Install the package that it is in: nothing is taken from the working directory."
            if isinstance(error, ModuleNotFoundError)
            else f"Mend {getattr(sys.modules.get(name), '__file__', None) or name}."
        )
        raise DataError(
            f"--clean {words}: {name} cannot be imported ({type(error).__name__}: {error}). "
            f"{advice}"
        ) from error


def _source_of(module: ModuleType) -> str:
    path = inspect.getsourcefile(module)
    return Path(path).read_text(encoding="utf-8") if path else ""
