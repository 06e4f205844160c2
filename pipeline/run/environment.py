"""Settings that name variables of the environment: a run writes down the name, never the value."""

import os
import re
from dataclasses import asdict
from functools import reduce
from operator import getitem
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from esolm.pipeline.run.contexts import ContextSection
from esolm.pipeline.run.data_sections import SourceSection
from esolm.pipeline.run.sections import RunConfig

ENTRIES = (SourceSection, ContextSection)
"""Of settings that are lists."""
_VARIABLE = re.compile(r"\$\{oc\.env:\s*(\w+)\s*\}")


def from_environment(config: DictConfig, known: list[str]) -> dict[str, tuple[str, str]]:
    """Returns the texts that name variables of the environment, by key, and their values."""
    texts = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    found = {}
    for key in known:
        text: Any = reduce(getitem, key.split("."), texts)
        value = OmegaConf.select(config, key)
        if isinstance(text, str) and isinstance(value, str) and _VARIABLE.search(text):
            found[key] = text, value
    return found


def stated_value(config: RunConfig, key: str) -> Any:
    """Returns the value of a setting; of one from the environment, the text that names it."""
    value: Any = reduce(getattr, key.split("."), config)
    if isinstance(value, tuple | list):  # as a file has it
        value = [asdict(each) if isinstance(each, ENTRIES) else each for each in value]
    text, then = config.from_environment.get(key, (None, None))
    return text if text is not None and value == then else value


def with_names(value: Any) -> Any:
    """Returns what a file says, nested, with `$NAME` for every variable that is not set here."""
    if isinstance(value, dict):
        return {key: with_names(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_names(inner) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: m[0] if m[1] in os.environ else f"${m[1]}", value)
    return value
