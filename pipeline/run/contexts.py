"""How many tokens of a row see each other, step by step: `train.context_schedule`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from esolm.model.settings import COUNT, setting, setting_problems


@dataclass
class ContextSection:
    """One entry of train.context_schedule."""

    until_step: int = setting(0, "The last step of it.", COUNT)
    length: int = setting(0, "Tokens of a row that see each other.", COUNT)


def context_at(schedule: Sequence[ContextSection], step: int) -> int:
    """Returns the context of a step, counted from 1; 0 where it is the whole row."""
    return next((each.length for each in schedule if step <= each.until_step), 0)


def context_problems(schedule: Sequence[ContextSection], seq_len: int) -> list[str]:
    """Says what is wrong with a schedule whatever the objective."""
    problems = list[str]()
    for number, entry in enumerate(schedule):
        key = f"train.context_schedule[{number}]"
        if wrong := setting_problems(entry, f"{key}."):
            problems += wrong
        elif entry.length >= seq_len or seq_len % entry.length:
            problems.append(
                f"{key}.length is {entry.length}; it must divide train.seq_len {seq_len} and "
                "be shorter: behind the last entry the context is the whole row"
            )
    for name in ("until_step", "length"):
        values = [getattr(entry, name) for entry in schedule]
        if any(now <= before for before, now in pairwise(values)):
            problems.append(
                f"train.context_schedule: {name} must rise from entry to entry, and is "
                f"{', '.join(map(str, values))}"
            )
    return problems
