# mypy: ignore-errors
"""What is to be written: the tokens that are given, and how the rest comes about."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from .planning_esolm import SCHEDULES


@dataclass(frozen=True)
class TextRequest:
    """One text.

    tokens: the ids that are given, the mask id where something is to be written. seed, sample: all
    that is random is a function of them; samples of one seed share their schedule.
    alpha_0, num_steps, schedule: see `EsoLMGenerationConfig`; so are temperature, top_p and top_k.
    eos: ids that end the text where they are written; it is done once all in front of one is.
    min_new: so many tokens from the first written place on are none of eos. stop: is given all
    tokens up to the first place that is not written, and says how many of them are the text, or
    None if it goes on. guesses: how many tokens a pass guesses ahead in the sequential phase, see
    `guessing_esolm`; adaptive: fewer where they do not hold.
    """

    tokens: Sequence[int]
    alpha_0: float = 1.0
    num_steps: int = 64
    schedule: str = "binomial"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    sample: int = 0
    eos: tuple[int, ...] = ()
    min_new: int = 0
    stop: Callable[[list[int]], int | None] | None = None
    guesses: int = 0
    adaptive: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    def check(self, config: Any) -> np.ndarray:
        """The tokens, int64 [L]. Raises ValueError naming everything that is out of range."""
        wrong = problems_of(self)
        ids = np.asarray(self.tokens, dtype=np.int64)
        if not ids.size:
            wrong.append("the text has no tokens")
        elif ids.min() < 0 or ids.max() >= config.vocab_size:
            wrong.append(
                f"the prompt has ids outside of the vocabulary, 0 to {config.vocab_size - 1}"
            )
        elif config.first_is_given and ids[0] == config.mask_token_id:
            wrong.append("this network predicts no first token: give a prompt")
        if wrong:
            raise ValueError("; ".join(wrong))
        return ids


def problems_of(options: Any) -> list[str]:
    """Everything about the options of a text that is out of range."""
    wrong = []
    for name, least in {"num_steps": 1, "top_k": 0, "guesses": 0}.items():
        wrong += out_of_range(name, getattr(options, name), least)
    if options.seed is not None:
        wrong += out_of_range("seed", options.seed, 0)
    for name, most in {"alpha_0": 1.0, "temperature": math.inf, "top_p": 1.0}.items():
        value = getattr(options, name)
        opens = name == "top_p"
        if not isinstance(value, int | float) or not math.isfinite(value):
            wrong.append(f"{name} is {value}; it must be a finite number")
        elif not 0 <= value <= most or (opens and not value):
            wrong.append(f"{name} is {value}; it must lie in {'(' if opens else '['}0, {most:g}]")
    if options.schedule not in SCHEDULES:
        wrong.append(f"schedule is '{options.schedule}'; choose of {', '.join(SCHEDULES)}")
    return wrong


def out_of_range(name: str, value: Any, least: int) -> list[str]:
    """What is wrong with a whole number."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        return [f"{name} is {value!r}; it must be a whole number"]
    return [f"{name} is {value}; it must be at least {least}"] if value < least else []
