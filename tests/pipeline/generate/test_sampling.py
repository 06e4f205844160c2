"""Tokens from logits: the distribution, its tails, nuclei, and what a draw depends on."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from esolm.pipeline.export.bundle.sampling_esolm import (
    TRIES,
    Numbers,
    Rules,
    Stream,
    by_sorting,
    by_trying,
    draw,
    inverted,
    keep_nucleus,
    probabilities_of,
    random_numbers,
    weights_of,
)

CPU = torch.device("cpu")


def rules(count: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Rules:
    return Rules.alike(count, temperature, top_p, top_k, CPU)


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(random_numbers(seed, 0, Stream.TOKENS).random((count, TRIES)))


def chi_square(drawn: Tensor, p: Tensor) -> tuple[float, int]:
    """Over all tokens; what is expected less than five times is one cell together."""
    expected = p * len(drawn)
    found = drawn.bincount(minlength=len(p)).double()
    assert not found[p == 0].any()
    rare = expected < 5
    observed = torch.cat([found[~rare], found[rare].sum()[None]])
    mean = torch.cat([expected[~rare], expected[rare].sum()[None]])
    possible = mean > 0
    value = ((observed - mean)[possible] ** 2 / mean[possible]).sum()
    return float(value), int(possible.sum()) - 1


def is_plausible(value: float, degrees: int) -> bool:
    return value < degrees + 5 * (2 * max(degrees, 1)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.5, 0.9, 0), (1.0, 0.5, 0), (1.0, 1.0, 7), (0.8, 0.6, 40)],
)
def test_draws_follow_the_distribution(
    dtype: torch.dtype, temperature: float, top_p: float, top_k: int
) -> None:
    """600 tokens over three blocks of sums, against softmax, top-k and top-p in float64 by hand."""
    logits = 2 * torch.randn(600, generator=torch.Generator().manual_seed(1))
    logits[5] = -torch.inf
    logits = logits.to(dtype).to(torch.promote_types(dtype, torch.float32))
    p = (logits.double() / temperature).softmax(-1)
    if top_k:
        p = torch.where(p >= p.sort(descending=True).values[top_k - 1], p, 0.0)
        p /= p.sum()
    ordered = p.sort(descending=True).values
    last = int((ordered.cumsum(0) - ordered < top_p).sum()) - 1
    p = torch.where(p >= ordered[last], p, 0.0)
    p /= p.sum()
    count = 40_000
    drawn = draw(logits.expand(count, -1), rules(count, temperature, top_p, top_k), uniforms(count))
    assert is_plausible(*chi_square(drawn, p))
    given = probabilities_of(logits[None], rules(1, temperature, top_p, top_k))[0, :600]
    torch.testing.assert_close(given, p, rtol=1e-5, atol=0)


def test_tails_are_right_down_to_a_millionth() -> None:
    """50,000 tokens of a millionth each in all, and one that has the rest."""
    logits = torch.full((50_000,), math.log(1e-6 / 49_999))
    logits[17] = math.log(1 - 1e-6)
    count = 200_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 4e-6 + (1 - 4e-6)
    weights = torch.nn.functional.pad(logits.double().exp().float(), (0, -50_000 % 256))
    drawn = torch.cat([inverted(weights.expand(1000, -1), part) for part in grid.split(1000)])
    rare = (drawn != 17).double().mean()
    # Of the last 4e-6 of the numbers a quarter is the tail's, and all of its tokens have a share.
    assert float(rare) == pytest.approx(0.25, abs=0.02)
    assert len(drawn[drawn != 17].unique()) > 25_000


def test_what_has_no_chance_is_never_drawn() -> None:
    """Also where the number is at the very end of its range, or the weights end with zeros."""
    weights = torch.zeros(3, 512)
    weights[0, 3] = weights[1, 300] = weights[2, 511] = 1.0
    for number in (0.0, 0.5, float(np.nextafter(1.0, 0.0))):
        drawn = inverted(weights, torch.full((3,), number, dtype=torch.float64))
        assert drawn.tolist() == [3, 300, 511]


@pytest.mark.parametrize("temperature", [5e-324, 1e-172, 1e-40, 1e-30, 1e300])
def test_temperatures_beyond_float32(temperature: float) -> None:
    """Close to 0 the likeliest is taken; at the other end all that can be are as likely."""
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(3))
    logits[:, 7] = -torch.inf
    drawn = draw(logits, rules(200, temperature), uniforms(200))
    if temperature < 1:
        assert torch.equal(drawn, logits.argmax(-1))
    else:
        assert set(drawn.tolist()) == set(range(30)) - {7}


def test_nucleus_keeps_the_token_that_crosses_and_its_equals() -> None:
    weights = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        found = keep_nucleus(weights, torch.tensor([top_p], dtype=torch.float64))
        assert int((found > 0).sum()) == kept
    equals = keep_nucleus(torch.ones(1, 4), torch.tensor([0.3], dtype=torch.float64))
    assert int((equals > 0).sum()) == 4


@pytest.mark.parametrize("top_p", [1e-9, 0.01])
def test_a_nucleus_that_trying_hardly_ever_hits(top_p: float) -> None:
    logits = torch.arange(1000.0).div(300)
    drawn = draw(logits.expand(200, -1), rules(200, top_p=top_p), uniforms(200))
    p = logits.double().softmax(-1)
    kept = int((p.flip(0).cumsum(0) - p.flip(0) < top_p).sum())
    assert set(drawn.tolist()) == set(range(1000 - kept, 1000))


@pytest.mark.parametrize("top_k", [0, 40])
def test_a_gpu_draws_what_a_cpu_draws(top_k: int) -> None:
    """Nuclei of all sizes, some of which no try hits, beside rows without one."""
    count = 3000
    logits = 3 * torch.randn(count, 600, generator=torch.Generator().manual_seed(4))
    shares, draws = uniforms(count, seed=1), np.random.default_rng(0)
    numbers = Numbers(
        np.ones(count), draws.choice([1e-6, 0.01, 0.3, 0.9, 0.999, 1.0], count),
        draws.choice([0, top_k], count),
    )  # fmt: skip
    mixed = Rules(numbers, Numbers(*map(torch.from_numpy, numbers)))
    weights = weights_of(logits, mixed)
    tokens = by_trying(weights, mixed, shares)
    assert torch.equal(by_sorting(weights, mixed, shares), tokens)
    first = inverted(weights, shares[:, 0])
    assert 0.1 < float((tokens == first).double().mean()) < 0.9


def test_rows_keep_to_their_own_rules() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    numbers = Numbers(
        np.array([0.0, 1.0, 2.0, 1.0]), np.array([1.0, 0.3, 1.0, 1.0]), np.array([0, 0, 0, 1])
    )
    mixed = Rules(numbers, Numbers(*map(torch.from_numpy, numbers)))
    shares = uniforms(4)
    together = draw(logits, mixed, shares)
    rows = [slice(i, i + 1) for i in range(4)]
    alone = [draw(logits[row], mixed.of(row, row), shares[row]) for row in rows]
    assert torch.equal(together, torch.cat(alone))
    assert together[0] == logits[0].argmax()
    assert together[3] == logits[3].argmax()


def test_streams_of_random_numbers_differ() -> None:
    streams = [(seed, n, purpose) for seed in (0, 1) for n in (0, 1) for purpose in Stream]
    first = {float(random_numbers(*stream).random()) for stream in streams}
    first |= {float(random_numbers(0, 0, Stream.GUESSES, part).random()) for part in (1, 2)}
    assert len(first) == len(streams) + 2
    assert (
        random_numbers(3, 1, Stream.TOKENS).random() == random_numbers(3, 1, Stream.TOKENS).random()
    )
