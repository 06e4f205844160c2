"""Learning-rate schedules as functions of the step."""

import math


def learning_rate(
    step: int,
    *,
    peak: float,
    kind: str,
    warmup_steps: int,
    total_steps: int,
    decay_fraction: float,
    min_ratio: float,
) -> float:
    """Returns the rate of update `step` = 0, 1, ...: a linear warm-up, then the schedule.

    constant: the rate stays at the peak. cosine: it falls to min_ratio * peak at total_steps. wsd
    (warm-up, stable, decay): it falls linearly over the last decay_fraction of the steps.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if kind == "constant":
        return peak
    if kind == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        share = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    else:
        decay_steps = max(1, round(decay_fraction * total_steps))
        share = min(1.0, (total_steps - step) / decay_steps)
    return peak * (min_ratio + (1.0 - min_ratio) * max(0.0, share))
