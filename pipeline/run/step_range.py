"""Steps of a run as a person names them: FIRST-LAST."""

import re


def parse_steps(text: str) -> range:
    """Returns the steps that FIRST-LAST names, counted from 1; an empty text names none.

    The form is not FIRST:LAST, which YAML reads as a number to base 60. Raises ValueError for any
    other text.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        raise ValueError(f"'{text}' is not FIRST-LAST with 0 < FIRST <= LAST")
    return range(int(match[1]), int(match[2]) + 1)


def steps_problems(text: str) -> list[str]:
    """Says what is wrong with the setting train.profile_steps, in words."""
    try:
        parse_steps(text)
    except ValueError as error:
        return [f"train.profile_steps: {error}"]
    return []
