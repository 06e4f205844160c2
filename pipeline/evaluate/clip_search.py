"""Finds the range of t to train a BD3-LM on: the one under which its loss varies least.

Source: arXiv 2503.09573, section 5.3. Clipped schedules lower the variance of the gradient; the
variance of the loss over the draws of the noise is measured in its place.
"""

from typing import Any

import numpy as np

from esolm.model.objectives import Objective
from esolm.model.objectives.base import DIFFUSION
from esolm.model.objectives.noise import EPSILON
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.likelihood import Settings, run_chunks
from esolm.pipeline.evaluate.passes import Passes, Schedule
from esolm.pipeline.evaluate.rows import Rows
from esolm.pipeline.evaluate.subject import Subject
from esolm.pipeline.parallel.bootstrap import ProcessInfo

# The published widths; the lower end moves by GRID.
WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
GRID = 0.05


def candidates() -> list[tuple[float, float]]:
    """Returns every (t_min, t_max) of the published widths; the full range is the last."""
    found = []
    for width in WIDTHS:
        for step in range(round((1.0 - width) / GRID) + 1):
            low = round(step * GRID, 2)
            found.append((max(low, EPSILON), round(low + width, 2)))
    return found


def search(
    subject: Subject, objective: Objective, rows: Rows, settings: Settings, info: ProcessInfo
) -> dict[str, Any] | None:
    """Makes the report of `esolm evaluate --clip-search` on rank 0, and returns None on the others.

    The rows take the same number of draws under every candidate. The `variance` of a range is that
    of a row's loss in nats per token over its draws, averaged over the rows. Raises ConfigError
    for too few draws, and unless the network is a BD3-LM.
    """
    if settings.num_draws < 2:
        raise ConfigError(f"--draws is {settings.num_draws}; a variance needs at least 2")
    ranges = []
    for t_min, t_max in candidates():
        clipped = objective.clipped(t_min, t_max)
        if clipped is None:
            raise ConfigError("--clip-search goes with networks trained as a BD3-LM")
        if problems := clipped.problems(rows.seq_len):
            raise ConfigError(problems)
        schedule = Schedule(clipped, rows.num_rows, rows.seq_len, settings.seed)
        passes = Passes(subject, clipped, schedule, settings.num_draws, 0)
        results = run_chunks(passes, rows, settings, info, f"t in {t_min:g}-{t_max:g}")
        if results is None:
            continue
        losses = np.concatenate([result.terms[DIFFUSION] for result in results])
        losses /= clipped.predicted_tokens(rows.seq_len)
        variance = float(losses.var(axis=1, ddof=1).mean())
        loss = float(losses.mean())
        ranges.append({"t_min": t_min, "t_max": t_max, "loss": loss, "variance": variance})
    if info.rank:
        return None
    ranges.sort(key=lambda each: each["variance"])
    return {
        "network": str(subject.path),
        "data": {"name": rows.name, "rows": rows.num_rows, "seq_len": rows.seq_len},
        "draws": settings.num_draws,
        "ranges": ranges,
    }
