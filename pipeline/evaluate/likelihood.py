"""Likelihoods and bounds of a network over rows of text, shared out among processes."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from esolm.data_prep.progress import ProgressBar
from esolm.model.likelihood import importance_bound
from esolm.model.objectives import Objective
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.passes import (
    NUM_BUCKETS,
    ORDERS_AS,
    ChunkResult,
    Float64Array,
    Passes,
    Schedule,
    follows_orders,
    orders_are_of,
)
from esolm.pipeline.evaluate.ranks import gather
from esolm.pipeline.evaluate.rows import Rows, chunks
from esolm.pipeline.evaluate.subject import Subject
from esolm.pipeline.parallel.bootstrap import ProcessInfo


@dataclass(frozen=True)
class Settings:
    """How much is drawn and fed.

    num_draws: the draws of the bound. num_orders: K of the importance-weighted bound, or 0 for no
    such bound. tokens_per_pass: the most tokens that are fed to the network at once, as if every
    row had two streams. orders_as: whose likelihood is meant under an order, a key of `ORDERS_AS`.
    """

    num_draws: int = 4
    num_orders: int = 0
    seed: int = 0
    tokens_per_pass: int = 4096
    orders_as: str = "decoder"


def measure(
    subject: Subject, objective: Objective, rows: Rows, settings: Settings, info: ProcessInfo
) -> dict[str, Any] | None:
    """Makes the report of `esolm evaluate`, all JSON, on rank 0, and returns None on the others.

    The result does not depend on the number of processes: rows are cut into the same chunks, and
    sums are taken in float64 over the rows in their order. Raises ConfigError for settings or rows
    that cannot be measured.
    """
    objective = objective.for_validation()
    _check(objective, rows, settings)
    num_draws = 1 if objective.is_exact else settings.num_draws
    schedule = Schedule(objective, rows.num_rows, rows.seq_len, settings.seed)
    passes = Passes(
        subject, objective, schedule, num_draws, settings.num_orders, settings.orders_as
    )
    results = run_chunks(passes, rows, settings, info, "evaluate")
    return None if results is None else _report(subject, objective, rows, settings, results)


def run_chunks(
    passes: Passes, rows: Rows, settings: Settings, info: ProcessInfo, label: str
) -> list[ChunkResult] | None:
    """Measures all rows, shared out among the processes.

    Returns the results of the chunks in their order on rank 0, and None on the others.
    """
    given = rows.seq_len - passes.objective.predicted_tokens(rows.seq_len)
    pieces = chunks(rows.num_rows, max(1, settings.tokens_per_pass // (2 * rows.seq_len)))
    mine: dict[int, ChunkResult] = {}
    numbers = range(info.rank, len(pieces), info.world_size)
    total = len(numbers) * passes.parts
    with ProgressBar(label, total, shown=info.rank == 0) as progress:
        for number in numbers:
            tokens = rows.read(pieces[number])
            num_bytes = rows.tokenizer.num_bytes(tokens[:, given:])
            mine[number] = passes.run(tokens, pieces[number], num_bytes, progress.advance)
    everything = gather(mine, info)
    if everything is None:
        return None
    found = {number: result for part in everything for number, result in part.items()}
    return [found[number] for number in range(len(pieces))]


def _check(objective: Objective, rows: Rows, settings: Settings) -> None:
    problems = objective.problems(rows.seq_len)
    if settings.num_draws < 1:
        problems.append(f"--draws is {settings.num_draws}; it must be at least 1")
    if settings.num_orders < 0:
        problems.append(f"--orders is {settings.num_orders}; it must not be negative")
    if settings.num_orders and not follows_orders(objective):
        problems.append("--orders goes with networks trained as an Eso-LM")
    if settings.orders_as not in ORDERS_AS:
        problems.append(f"--orders-as is '{settings.orders_as}'; choose {' or '.join(ORDERS_AS)}")
    if settings.seed < 0:
        problems.append(f"--seed is {settings.seed}; it must not be negative")
    if rows.seq_len < 2:
        problems.append(f"sequences of {rows.seq_len} tokens are too short; take at least 2")
    if problems:
        raise ConfigError(problems)


def _report(
    subject: Subject, objective: Objective, rows: Rows, settings: Settings,
    results: list[ChunkResult],
) -> dict[str, Any]:  # fmt: skip
    tokens = rows.num_rows * objective.predicted_tokens(rows.seq_len)
    num_bytes = int(np.concatenate([result.num_bytes for result in results]).sum())
    unit = Unit(tokens, num_bytes)
    names = list(results[0].terms)
    terms = {name: np.concatenate([r.terms[name] for r in results]) for name in names}
    exact = np.concatenate([result.left_to_right for result in results])
    return {
        "network": {
            "path": str(subject.path),
            "kind": subject.kind,
            "step": subject.step,
            "weights": subject.weights,
            "objective": _described(objective),
        },
        "data": {
            "name": rows.name,
            "rows": rows.num_rows,
            "seq_len": rows.seq_len,
            "tokens": tokens,
            "bytes": num_bytes,
        },
        "seed": settings.seed,
        "nelbo": _bound_report(terms, unit, objective.is_exact),
        "phases": {
            name: unit.of_nats(float(values.mean(axis=1).sum())) for name, values in terms.items()
        },
        "t_buckets": _bucket_report(np.stack([result.buckets for result in results]).sum(axis=0)),
        "left_to_right": unit.of_nats(-float(exact.sum())) if len(exact) else None,
        "note": objective.without_likelihood,
        "orders": _order_report(
            objective, np.concatenate([r.orders for r in results]), unit, settings.orders_as
        ),
    }


@dataclass(frozen=True)
class Unit:
    """The amount of text that nats are divided by: predicted tokens, and their bytes."""

    tokens: int
    num_bytes: int

    def of_nats(self, nats: float) -> dict[str, float | None]:
        """Returns nats per token, perplexity, bits per token and, if there are bytes, per byte."""
        loss = nats / self.tokens
        bits = nats / math.log(2.0)
        return {
            "nats_per_token": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_token": bits / self.tokens,
            "bits_per_byte": bits / self.num_bytes if self.num_bytes else None,
        }


def _described(objective: Objective) -> dict[str, Any]:
    """The objective in words; a shorter context is only ever one of training."""
    settings = asdict(objective)  # type: ignore[call-overload]
    return {
        "name": type(objective).__name__,
        **{name: value for name, value in settings.items() if name != "context"},
    }


def _bound_report(terms: dict[str, Float64Array], unit: Unit, exact: bool) -> dict[str, Any]:
    """Returns the bound as a mean over the draws, with the standard error of that mean."""
    per_draw = np.stack([values.sum(axis=0) for values in terms.values()]).sum(axis=0)
    per_row = np.stack([values.mean(axis=1) for values in terms.values()]).sum(axis=0)
    num_draws, num_rows = len(per_draw), len(per_row)
    error: float | None = 0.0 if exact else None
    if num_draws > 1:
        error = float(per_draw.std(ddof=1)) / math.sqrt(num_draws) / unit.tokens
    spread = None
    if num_rows > 1:
        spread = float(per_row.std(ddof=1)) * math.sqrt(num_rows) / unit.tokens
    return {
        **unit.of_nats(float(per_draw.mean())),
        "exact": exact,
        "draws": num_draws,
        "standard_error": error,
        "standard_error_over_rows": spread,
    }


def _bucket_report(buckets: Float64Array) -> list[dict[str, Any]]:
    """Returns one entry for each tenth of t that was drawn; none without a diffusion term."""
    found = []
    for number, (tokens, masked, weighted, plain) in enumerate(buckets.tolist()):
        if tokens:
            found.append(
                {
                    "t_from": number / NUM_BUCKETS,
                    "t_to": (number + 1) / NUM_BUCKETS,
                    "tokens": int(tokens),
                    "masked": int(masked),
                    "bound_nats_per_token": weighted / tokens,
                    "nats_per_masked_token": plain / masked if masked else None,
                }
            )
    return found


def _order_report(
    objective: Objective, log_p: Float64Array, unit: Unit, orders_as: str
) -> dict[str, Any] | None:
    """Returns the bound of one drawn order (the mean over all) and the weighted one over K.

    The latter is the importance-weighted bound. Returns None if no orders were drawn.
    """
    num_orders = log_p.shape[1]
    if not num_orders:
        return None
    bound = importance_bound(torch.from_numpy(log_p)).numpy()
    return {
        "k": num_orders,
        "as": orders_as,
        "of": orders_are_of(objective, orders_as),
        "alpha_0": objective.diffusion_share,
        "single": unit.of_nats(-float(log_p.mean(axis=1).sum())),
        "importance_weighted": unit.of_nats(float(bound.sum())),
    }
