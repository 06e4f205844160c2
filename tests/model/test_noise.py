"""Closed forms of the noise schedule, in float64."""

import numpy as np
import pytest

from esolm.model.objectives import SampleKeys, noise

ALPHAS = [0.0, 0.0625, 0.25, 0.5, 1.0]
T = np.linspace(0.001, 1.0, 101)


@pytest.mark.parametrize("alpha_0", ALPHAS)
def test_ends_of_the_schedule(alpha_0: float) -> None:
    ends = noise.alpha(np.array([0.0, 1.0]), alpha_0)
    np.testing.assert_allclose(ends, [alpha_0, 0.001 * alpha_0], rtol=1e-12)


@pytest.mark.parametrize("alpha_0", ALPHAS)
def test_weight_is_minus_the_slope_over_the_masked_share(alpha_0: float) -> None:
    step = 1e-5
    slope = (noise.alpha(T + step, alpha_0) - noise.alpha(T - step, alpha_0)) / (2 * step)
    expected = -slope / (1.0 - noise.alpha(T, alpha_0))
    np.testing.assert_allclose(noise.elbo_weight(T, alpha_0), expected, rtol=1e-8)


@pytest.mark.parametrize("alpha_0", ALPHAS)
@pytest.mark.parametrize("power", [1, 2])
def test_mean_alpha_is_the_integral(alpha_0: float, power: int) -> None:
    t = (np.arange(100_000) + 0.5) / 100_000 * 0.999 + 0.001
    expected = (noise.alpha(t, alpha_0) ** power).mean()
    assert noise.mean_alpha(alpha_0, power) == pytest.approx(expected, rel=1e-8)


def test_one_t_per_stratum_of_the_global_batch() -> None:
    slot = np.arange(64)
    keys = SampleKeys(3, 1000 + slot, slot, 64)
    t = noise.stratified_t(keys.uniforms(2, 1)[:, 0], slot, 64)
    low = 0.001 + 0.999 * slot / 64
    assert (t >= low).all()
    assert (t < low + 0.999 / 64).all()
    # The same row in another micro-batch has the same t.
    one = SampleKeys(3, np.array([1010]), np.array([10]), 64)
    assert noise.stratified_t(one.uniforms(2, 1)[:, 0], one.slot, 64)[0] == t[10]


def test_t_keeps_to_its_range() -> None:
    ends = noise.stratified_t(np.array([0.0, 1.0 - 2**-53]), np.array([0, 7]), 8, 0.3, 0.8)
    assert ends[0] == 0.3
    assert ends[1] <= 0.8


def test_masks_are_drawn_with_the_chance_and_weighted_by_the_bound() -> None:
    slot = np.arange(400)
    keys = SampleKeys(0, slot, slot, 800)
    t = noise.row_times(keys, 400)
    masked, weights = noise.draw_masked(keys, 500, t, 0.5, 400, low_variance=False)
    t = noise.stratified_t(keys.uniforms(2, 1)[:, 0], slot, 400)
    assert masked.shape == (400, 500)
    share = masked.mean(axis=1)
    chance = 1.0 - noise.alpha(t, 0.5)
    assert np.abs(share - chance).max() < 5 * np.sqrt(0.25 / 500)
    assert np.abs(share - chance).mean() < np.sqrt(0.25 / 500)
    np.testing.assert_allclose(weights[:, 0], noise.elbo_weight(t, 0.5) / (400 * 500), rtol=1e-12)
    _, plain = noise.draw_masked(keys, 500, t[:, None], 0.5, 400, low_variance=True)
    np.testing.assert_allclose(plain, 1.0 / (400 * 500), rtol=1e-12)
