"""The ranges of numeric settings."""

import re
from dataclasses import dataclass
from functools import reduce
from math import inf

from pipeline.run.config import RunConfig


@dataclass(frozen=True)
class Range:
    """Finite values from low to high; `above` leaves out low itself, `below` leaves out high."""

    low: float
    high: float = inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        below = self.below or self.high == inf
        return low and (value < self.high if below else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        if self.high == inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


COUNT, MAYBE, POSITIVE, SHARE = Range(1), Range(0), Range(0, above=True), Range(0, 1)

RANGES = {
    "seed": Range(0, 2**63, below=True),
    "data.prefetch": COUNT,
    "train.steps": COUNT,
    "train.global_batch_size": COUNT,
    "train.micro_batch_size": COUNT,
    "train.seq_len": Range(2),
    "train.log_every_steps": COUNT,
    "train.valid_every_steps": MAYBE,
    "train.valid_samples": COUNT,
    "train.timeout_minutes": Range(0, 1e6, above=True),
    "train.spike_sigmas": MAYBE,
    "train.spike_window": Range(2),
    "train.max_refused_steps": COUNT,
    "train.check_replicas_every_steps": MAYBE,
    "optimizer.lr": MAYBE,
    "optimizer.beta_1": Range(0, 1, below=True),
    "optimizer.beta_2": Range(0, 1, below=True),
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": MAYBE,
    "optimizer.ema_decay": Range(0, 1, below=True),
    "optimizer.clip": MAYBE,
    "optimizer.warmup_steps": MAYBE,
    "optimizer.decay_fraction": SHARE,
    "optimizer.min_lr_ratio": SHARE,
    "checkpoint.every_steps": COUNT,
    "checkpoint.every_minutes": MAYBE,
    "checkpoint.keep": COUNT,
    "checkpoint.permanent_every_steps": MAYBE,
    "model.norm_eps": POSITIVE,
    "model.cond_dim": COUNT,
    "model.rope_base": POSITIVE,
    "model.init_std": MAYBE,
}


def range_problems(config: RunConfig) -> list[str]:
    """Every numeric setting outside its range, in words; ModelConfig checks its own sizes."""
    values = {key: reduce(getattr, key.split("."), config) for key in RANGES}
    return [
        f"{key} is {value}; it must be {'finite and ' if str(value) == 'inf' else ''}{RANGES[key]}"
        for key, value in values.items()
        if not RANGES[key].holds(value)  # type: ignore[arg-type]
    ]


def parse_steps(text: str) -> range:
    """FIRST-LAST as the steps it names, counted from 1; empty text names none.

    Not FIRST:LAST, which YAML reads as a number to base 60. Raises ValueError.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        raise ValueError(f"'{text}' is not FIRST-LAST with 0 < FIRST <= LAST")
    return range(int(match[1]), int(match[2]) + 1)


def steps_problems(text: str) -> list[str]:
    """What is wrong with the setting, in words."""
    try:
        parse_steps(text)
    except ValueError as error:
        return [f"train.profile_steps: {error}"]
    return []
