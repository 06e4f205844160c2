"""The sampler writes what its network says: empirical against exact distribution, enumerated.

Given the number of tokens per step, which a batch shares, its rows are independent: each has an
order of its own. So the counts and the rows given the counts are tested apart.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esolm.pipeline.export.bundle.planning_esolm import diffusion_counts
from tests.model.enumeration import LENGTH, MASK_ID, SEQUENCES
from tests.pipeline.generate.conftest import network
from tests.pipeline.generate.systems import written_by

STEPS = 3
ROWS = 3000
ALPHAS = [0.0, 0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights whose every sequence has some probability, but far from the same."""
    found = network(
        vocab_size=4, mask_token_id=MASK_ID, hidden_size=16, intermediate_size=24,
        num_attention_heads=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_norm_weight = "norm" in name and name.endswith("weight")
            parameter.copy_((0.15 if "lm_head" in name else 0.7) * noise + is_norm_weight)
    return found


def is_plausible(chi_square: float, degrees: int) -> bool:
    """Below the mean by four standard deviations; seeds are fixed."""
    return chi_square < degrees + 4 * (2 * degrees) ** 0.5


def distance(sequences: Tensor, expected: Tensor) -> tuple[float, int]:
    """Chi-square over the 81 sequences and its degrees of freedom."""
    cells = (sequences * 3 ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    found = cells.bincount(minlength=len(SEQUENCES)).double()
    rare = expected < 5  # too few for the approximation: one cell together
    observed = torch.cat([found[~rare], found[rare].sum()[None]])
    mean = torch.cat([expected[~rare], expected[rare].sum()[None]])
    assert not found[expected == 0].any()
    possible = mean > 0
    value = ((observed - mean)[possible] ** 2 / mean[possible]).sum()
    return float(value), int(possible.sum()) - 1


@cache
def log_p_of_plan(model: Any, order: tuple[int, ...], counts: tuple[int, ...]) -> Tensor:
    """log p of each of the 81 sequences, by one pass over everything for each step.

    What the counts do not cover is given, in front of the order.
    """
    labels = SEQUENCES[:, list(order)]
    total = torch.zeros(len(labels), dtype=torch.float64)
    written = len(order) - sum(counts)
    for count in counts:
        end = written + count
        fed = labels[:, :end].clone()
        fed[:, written:] = MASK_ID
        with torch.no_grad():
            logits = model(fed, torch.tensor(order[:end]).expand_as(fed)).logits
        log_p = logits.double().log_softmax(-1).gather(-1, labels[:, :end, None])[..., 0]
        total += log_p[:, written:].sum(1)
        written = end
    return total


def exact(model: Any, num_random: int, counts: tuple[int, ...]) -> Tensor:
    """[81]: p(x | counts): the mean over the orders of the first num_random tokens."""
    orders = []
    for front in itertools.permutations(range(LENGTH), num_random):
        orders.append(front + tuple(i for i in range(LENGTH) if i not in front))
    return torch.stack([log_p_of_plan(model, order, counts).exp() for order in orders]).mean(0)


@pytest.mark.parametrize(
    "alpha_0", [a if a == 0.5 else pytest.param(a, marks=pytest.mark.check) for a in ALPHAS]
)
def test_rows_follow_the_exact_distribution(model: Any, alpha_0: float) -> None:
    """Chi-square over all sequences, summed over several draws of the counts."""
    chi_square, degrees, seen = 0.0, 0, set()
    for seed in range(6 if alpha_0 > 0 else 2):
        output = written_by(
            model, num_samples=ROWS, length=LENGTH, alpha_0=alpha_0, num_steps=STEPS, seed=seed
        )
        counts = tuple(output.counts[:, 0].tolist())
        assert (output.counts == output.counts[:, :1]).all()
        diffusion = counts[: output.num_diffusion[0]]
        assert counts[len(diffusion) :] == (1,) * (LENGTH - sum(diffusion))
        seen.add((counts, int(output.num_diffusion[0])))
        expected = ROWS * exact(model, sum(diffusion), counts)
        assert float(expected.sum()) == pytest.approx(ROWS)
        found, freedom = distance(output.sequences, expected)
        chi_square, degrees = chi_square + found, degrees + freedom
    assert is_plausible(chi_square, degrees), (chi_square, degrees)
    assert len(seen) > (alpha_0 > 0)


def test_the_model_is_no_trivial_one(model: Any) -> None:
    """Orders and step counts matter to it, so a sampler that mixed them up would be found."""
    one_by_one, at_once = exact(model, 4, (1, 1, 1, 1)), exact(model, 4, (4,))
    left_to_right = exact(model, 0, (1, 1, 1, 1))
    for one, other in itertools.combinations((one_by_one, at_once, left_to_right), 2):
        difference = float(((one - other) ** 2 / other).sum())
        assert ROWS * difference > 500


@pytest.mark.check
@pytest.mark.parametrize("alpha_0", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("guesses", "adaptive"), [(1, False), (2, False), (3, True)])
def test_guesses_leave_the_distribution(
    model: Any, alpha_0: float, guesses: int, adaptive: bool
) -> None:
    """Fewer passes, some of which write several tokens, and the same chances."""
    chi_square, degrees, saved = 0.0, 0, 0
    for seed in range(4):
        options = {"length": LENGTH, "alpha_0": alpha_0, "num_steps": STEPS, "seed": seed}
        plain = written_by(model, **options)
        counts, num_random = tuple(plain.counts[:, 0].tolist()), 0
        num_random = sum(counts[: plain.num_diffusion[0]])
        output = written_by(model, num_samples=ROWS, guesses=guesses, adaptive=adaptive, **options)
        expected = ROWS * exact(model, num_random, counts)
        found, freedom = distance(output.sequences, expected)
        chi_square, degrees = chi_square + found, degrees + freedom
        saved += int((output.counts > 1).sum())
    assert is_plausible(chi_square, degrees), (chi_square, degrees)
    assert saved > ROWS / 2


@pytest.mark.parametrize("schedule", ["binomial", "fixed", "strided"])
@pytest.mark.parametrize("guesses", [0, 2])
def test_gaps_are_filled_with_their_conditional_distribution(
    model: Any, schedule: str, guesses: int
) -> None:
    """Given is the third token; one batch of 3,000 samples of one seed for each schedule."""
    prompt = torch.tensor([[MASK_ID, MASK_ID, 1, MASK_ID]])
    options = {
        "length": LENGTH, "alpha_0": 0.5, "num_steps": 2, "schedule": schedule, "seed": 3,
        "guesses": guesses,
    }  # fmt: skip
    plain = written_by(model, prompt, **{**options, "guesses": 0})
    counts = tuple(plain.counts[:, 0].tolist())
    num_random = sum(counts[: plain.num_diffusion[0]])
    output = written_by(model, prompt, num_samples=ROWS, **options)
    free = (0, 1, 3)
    if schedule == "strided":  # the order is fixed: two sub-contexts, side by side
        fronts = [tuple(plain.order[0, 1 : 1 + num_random].tolist())]
    else:
        fronts = list(itertools.permutations(free, num_random))
    orders = [(2, *front, *(i for i in free if i not in front)) for front in fronts]
    p = torch.stack([log_p_of_plan(model, order, counts).exp() for order in orders]).mean(0)
    p = torch.where(SEQUENCES[:, 2] == 1, p, 0.0)
    assert float(p.sum()) == pytest.approx(1.0)
    assert is_plausible(*distance(output.sequences, ROWS * p))


def compositions(
    remaining: int, alphas: list[float], chance: float = 1.0
) -> Iterator[tuple[tuple[int, ...], float]]:
    """(tokens of each step, zeros left out; its probability), from the definition."""
    if len(alphas) == 1:
        yield (), chance
        return
    share = (alphas[1] - alphas[0]) / (1.0 - alphas[0])
    for count in range(remaining + 1):
        ways = math.comb(remaining, count) * share**count * (1 - share) ** (remaining - count)
        for rest, p in compositions(remaining - count, alphas[1:], chance * ways):
            yield (count, *rest) if count else rest, p


@pytest.mark.parametrize("alpha_0", [0.25, 0.5, 1.0])
def test_counts_follow_their_exact_distribution(alpha_0: float) -> None:
    times = [1.0 - k / STEPS for k in range(STEPS + 1)]
    alphas = [alpha_0 * (1 - 0.999 * t) for t in times]
    expected: Counter[tuple[int, ...]] = Counter()
    for counts, chance in compositions(LENGTH, alphas):
        expected[counts] += chance
    assert sum(expected.values()) == pytest.approx(1.0)
    draws, generator = 5000, np.random.Generator(np.random.Philox(0))
    found = Counter(
        tuple(diffusion_counts(LENGTH, alpha_0, STEPS, generator)) for _ in range(draws)
    )
    possible = {counts: chance * draws for counts, chance in expected.items() if chance > 1e-12}
    assert found.keys() <= possible.keys()
    common = {counts: mean for counts, mean in possible.items() if mean >= 5}
    chi_square = sum((found[counts] - mean) ** 2 / mean for counts, mean in common.items())
    assert is_plausible(chi_square, len(common))
