"""Settings as fields of dataclasses: each says once its default, its range or choices, its help.

The code that checks a configuration reads these fields, and so does the code that documents it.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any


@dataclass(frozen=True)
class Range:
    """The finite values from low to high; `above` leaves out low itself, `below` high itself."""

    low: float
    high: float = inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range; NaN and infinities never do."""
        low = value > self.low if self.above else value >= self.low
        below = self.below or self.high == inf
        return low and (value < self.high if below else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        if self.high == inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


COUNT, NOT_NEGATIVE, POSITIVE, SHARE = Range(1), Range(0), Range(0, above=True), Range(0, 1)
BELOW_ONE = Range(0, 1, below=True)


def setting(
    default: Any,
    help: str,
    within: Range | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Makes a dataclass field of a setting.

    help: one sentence for the documents, which may have `code` in Markdown. within: the range of
    allowed values, or of each value of several. choices: the allowed values.
    """
    metadata = {"help": help, "within": within, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


def setting_problems(section: Any, prefix: str) -> list[str]:
    """Says which values of a section lie outside their range or choices, one sentence each.

    prefix: what stands before the name of a setting, such as `model.`.
    """
    problems = []
    for field in dataclasses.fields(section):
        value, metadata = getattr(section, field.name), field.metadata
        within, choices = metadata.get("within"), metadata.get("choices")
        several = value if isinstance(value, tuple | list) else (value,)
        if within is not None and not all(within.holds(one) for one in several):
            finite = "finite and " if str(value) == "inf" else ""
            shown = list(value) if isinstance(value, tuple) else value
            problems.append(f"{prefix}{field.name} is {shown}; it must be {finite}{within}")
        if choices and value not in choices:
            problems.append(f"{prefix}{field.name} is '{value}'; choose {' or '.join(choices)}")
    return problems
