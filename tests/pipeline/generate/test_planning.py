"""What is written when: counts, orders and schedules, against their definitions."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from esolm.model.objectives.noise import alpha
from esolm.pipeline.export.bundle.planning_esolm import (
    SCHEDULES,
    diffusion_counts,
    even_counts,
    plan_blocks,
    plan_two_phases,
    strided,
)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_counts() -> None:
    assert diffusion_counts(100, 0.0, 10, draws()) == []
    for seed in range(20):
        counts = diffusion_counts(100, 1.0, 10, draws(seed))
        assert sum(counts) == 100
        assert len(counts) <= 10
        assert min(counts) > 0
    assert diffusion_counts(100, 1.0, 1, draws()) == [100]


def test_counts_follow_the_schedule() -> None:
    """The share written by time t is alpha_t: mean over draws within five standard errors."""
    alpha_0, num_steps, length, times = 0.6, 1, 50, 2000
    generator = draws()
    totals = [sum(diffusion_counts(length, alpha_0, num_steps, generator)) for _ in range(times)]
    chance = (alpha_0 - 0.001 * alpha_0) / (1 - 0.001 * alpha_0)
    error = (length * chance * (1 - chance) / times) ** 0.5
    assert abs(sum(totals) / times - length * chance) < 5 * error


def test_the_schedule_is_the_one_of_training_down_to_its_floor() -> None:
    """Of 10^12 tokens a step takes its share to a millionth, and the floor is a thousandth.

    What is clean at time s and was not at t, of all that was not: from training's own alpha_t.
    """
    length, alpha_0, num_steps = 10**12, 0.5, 4
    times = np.linspace(1.0, 0.0, num_steps + 1)
    clean, left = alpha(times, alpha_0), float(length)
    counts = diffusion_counts(length, alpha_0, num_steps, draws())
    for (before, after), count in zip(pairwise(clean), counts, strict=True):
        chance = (after - before) / (1.0 - before)
        error = math.sqrt(left * chance * (1.0 - chance))
        assert abs(count - left * chance) < 6 * error
        left -= count
    assert abs(left / length - (1 - alpha_0) / (1 - 0.001 * alpha_0)) < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("alpha_0", [0.0, 0.3, 1.0])
def test_two_phases_write_every_free_place_once(schedule: str, alpha_0: float) -> None:
    free = np.array([2, 3, 5, 8, 9, 10, 11, 20, 21, 22])
    for seed in range(20):
        plan = plan_two_phases(free, alpha_0, 3, schedule, seed, 0)
        assert sorted(plan.places) == free.tolist()
        assert sum(plan.counts) == len(free)
        assert min(plan.counts) > 0
        assert plan.num_diffusion <= 3
        written = sum(plan.counts[: plan.num_diffusion])
        rest = plan.places[written:]
        assert (rest == np.sort(rest)).all()
        assert set(plan.counts[plan.num_diffusion :]) <= {1}
        if schedule != "binomial":
            assert written == pytest.approx(alpha_0 * len(free), abs=2)


def test_samples_of_a_seed_share_counts_and_not_orders() -> None:
    one, other = (plan_two_phases(np.arange(40), 0.5, 4, "binomial", 7, n) for n in (0, 1))
    assert one.counts == other.counts
    assert (one.places != other.places).any()
    again = plan_two_phases(np.arange(40), 0.5, 4, "binomial", 7, 1)
    assert (again.places == other.places).all()


def test_strides_are_sub_contexts_written_side_by_side() -> None:
    places, counts = strided(np.arange(12), 4)
    assert places.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert counts == [3] * 4
    places, counts = strided(np.arange(10), 4)
    assert places.tolist() == [0, 4, 7, 1, 5, 8, 2, 6, 9, 3]
    assert counts == [3, 3, 3, 1]
    for length, num_steps in ((1, 1), (1, 5), (7, 3), (100, 9), (0, 3)):
        places, counts = strided(np.arange(length), num_steps)
        assert sorted(places) == list(range(length))
        assert sum(counts) == length
        assert len(counts) <= num_steps


def test_even_counts() -> None:
    assert even_counts(10, 4) == [2, 3, 2, 3]
    assert even_counts(2, 5) == [1, 1]
    assert even_counts(0, 3) == []


def test_blocks_are_written_one_after_the_other() -> None:
    free = np.array([1, 3, 4, 5, 6, 7, 8])
    for schedule in SCHEDULES:
        plan = plan_blocks(free, 4, 2, schedule, 0, 0)
        blocks = plan.places // 4
        assert (np.diff(blocks) >= 0).all()
        assert sorted(plan.places) == free.tolist()
        ends = np.cumsum(plan.counts)
        for start, end in pairwise([0, *ends]):
            assert len(set(blocks[start:end])) == 1


def test_each_step_of_masked_diffusion_is_as_likely() -> None:
    """With 3 steps 5 tokens are written at once with chance 3 / 3 ** 5; none is left out."""
    plans: list[Any] = [plan_blocks(np.arange(5), 5, 3, "binomial", 0, n) for n in range(2000)]
    assert all(sum(plan.counts) == 5 and min(plan.counts) > 0 for plan in plans)
    at_once = sum(len(plan.counts) == 1 for plan in plans)
    assert abs(at_once - 2000 / 81) < 5 * (2000 / 81) ** 0.5
    assert plan_blocks(np.arange(6), 6, 1, "binomial", 0, 0).counts == [6]
