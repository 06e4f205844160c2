# mypy: ignore-errors
"""What is written when, laid down before the first pass.

Schedules share out the tokens of diffusion among passes: `binomial` as the process of training does
(arXiv 2506.01928, section 5; 2406.07524, section 4), `fixed` evenly, `strided` so that the tokens
of one pass are far apart (sub-contexts written side by side, each from left to right), and
`confidence`, which is not the model's own distribution, the most certain first.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .sampling_esolm import Stream, random_numbers

SCHEDULES = ("binomial", "fixed", "strided", "confidence")
# alpha_1 = ALPHA_FLOOR * alpha_0, as in training.
ALPHA_FLOOR = 1e-3


@dataclass(frozen=True)
class WritingPlan:
    """places: int64 [F], free places in the order of writing. counts: tokens of each pass.

    The first num_diffusion passes belong to the diffusion phase. by_confidence: these passes choose
    among the places that are left to them, whatever their order here. has_diffusion: whether there
    was to be such a phase, even if it came out empty.
    """

    places: np.ndarray
    counts: list[int]
    num_diffusion: int
    by_confidence: bool = False
    has_diffusion: bool = False


def plan_two_phases(
    free: np.ndarray, alpha_0: float, num_steps: int, schedule: str, seed: int, sample: int
) -> WritingPlan:
    """A share alpha_0 by diffusion, the rest from left to right, one token a pass.

    The samples of one seed share their counts and differ in their orders.
    """
    if schedule == "strided":
        places, counts = strided(free, num_steps)
        counts = counts[: round(alpha_0 * len(counts))]
    else:
        places = random_numbers(seed, sample, Stream.ORDER).permutation(free)
        if schedule == "binomial":
            draws = random_numbers(seed, 0, Stream.COUNTS)
            counts = diffusion_counts(len(free), alpha_0, num_steps, draws)
        else:
            counts = even_counts(round(alpha_0 * len(free)), num_steps)
    written = sum(counts)
    places[written:].sort()
    by_confidence = schedule == "confidence"
    num_diffusion, rest = len(counts), [1] * (len(free) - written)
    return WritingPlan(places, counts + rest, num_diffusion, by_confidence, alpha_0 > 0)


def plan_blocks(
    free: np.ndarray, block_size: int, num_steps: int, schedule: str, seed: int, sample: int
) -> WritingPlan:
    """Diffusion within one block after the other; num_steps: of each. Each sample on its own."""
    draws = random_numbers(seed, sample, Stream.ORDER)
    places, counts = [free[:0]], []
    for block in np.split(free, np.flatnonzero(np.diff(free // block_size)) + 1):
        if schedule == "binomial":
            # From t to s each masked token is written with chance (t - s) / t: every step of a
            # uniform grid is equally likely. One that writes nothing is left out, as the network is
            # not told the time.
            steps = draws.integers(num_steps, size=len(block))
            places.append(block[steps.argsort(kind="stable")])
            counts += np.unique(steps, return_counts=True)[1].tolist()
        elif schedule == "strided":
            ordered, of_passes = strided(block, num_steps)
            places.append(ordered)
            counts += of_passes
        else:
            places.append(draws.permutation(block))
            counts += even_counts(len(block), num_steps)
    return WritingPlan(np.concatenate(places), counts, len(counts), schedule == "confidence")


def diffusion_counts(
    length: int, alpha_0: float, num_steps: int, draws: np.random.Generator
) -> list[int]:
    """Tokens written by each diffusion step; zero steps are dropped.

    From t to s < t each remaining token is written with probability
    (alpha_s - alpha_t) / (1 - alpha_t), where alpha_t = alpha_0 (1 - 0.999 t).
    With alpha_0 = 1 the last step has probability one and nothing is left over.
    """
    times = np.linspace(1.0, 0.0, num_steps + 1)
    alphas = alpha_0 * (1.0 - (1.0 - ALPHA_FLOOR) * times)
    remaining, counts = length, []
    for alpha_t, alpha_s in pairwise(alphas.tolist()):
        count = int(draws.binomial(remaining, (alpha_s - alpha_t) / (1.0 - alpha_t)))
        remaining -= count
        counts += [count] if count else []
    return counts


def even_counts(length: int, num_steps: int) -> list[int]:
    """As equal as can be, none of them zero."""
    ends = [length * step // num_steps for step in range(num_steps + 1)]
    return [end - start for start, end in pairwise(ends) if end > start]


def strided(free: np.ndarray, num_steps: int) -> tuple[np.ndarray, list[int]]:
    """The places in order and the tokens of each pass: one of every sub-context, left to right.

    There are as few sub-contexts as num_steps passes permit; they differ in length by one at most.
    """
    num_contexts = -(-len(free) // num_steps)
    contexts = np.array_split(free, max(num_contexts, 1))
    passes = [
        [context[i] for context in contexts if i < len(context)] for i in range(len(contexts[0]))
    ]
    places = [place for each in passes for place in each]
    return np.array(places, dtype=np.int64), [len(each) for each in passes]
