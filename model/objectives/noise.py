"""The log-linear noise schedule, scaled by alpha_0.

alpha_t is the probability that a token is still clean at time t in [0, 1]. Source: Eso-LM
section 3 (arXiv 2506.01928), with the floor of the published code: alpha_1 = 0.001 alpha_0.
"""

import numpy as np
from numpy.typing import NDArray

from esolm.model.objectives.draws import Purpose, SampleKeys

# This is both the floor of the schedule and the smallest t that is drawn.
EPSILON = 1e-3

Array = NDArray[np.float64]


def alpha(t: Array, alpha_0: float) -> Array:
    """Returns alpha_t = alpha_0 (1 - (1 - eps) t)."""
    return alpha_0 * (1.0 - (1.0 - EPSILON) * t)


def elbo_weight(t: Array, alpha_0: float) -> Array:
    """Returns -alpha'_t / (1 - alpha_t), the weight of a masked token in the diffusion bound."""
    return alpha_0 * (1.0 - EPSILON) / (1.0 - alpha(t, alpha_0))


def stratified_t(
    uniform: Array,
    slot: NDArray[np.int64],
    num_slots: int,
    t_min: float = EPSILON,
    t_max: float = 1.0,
) -> Array:
    """Returns one t for each slot of the global batch, stratified over [t_min, t_max].

    A uniform draw u becomes (u + slot) / num_slots, which is then scaled to the range.
    """
    return (t_max - t_min) * (uniform + slot) / num_slots + t_min


def row_times(keys: SampleKeys, num_rows: int) -> Array:
    """Draws t for each row, [B, 1], stratified over the num_rows that take the diffusion term."""
    return stratified_t(keys.uniforms(Purpose.TIME, 1)[:, 0], keys.slot, num_rows)[:, None]


def mean_alpha(alpha_0: float, power: int = 1) -> float:
    """Returns the mean of alpha_t, or with power = 2 of its square, over t uniform on [eps, 1].

    The formulas hold because alpha_t is linear in t.
    """
    first, last = alpha(np.array([EPSILON, 1.0]), alpha_0).tolist()
    if power == 1:
        return float(first + last) / 2
    return float(first * first + first * last + last * last) / 3


def draw_masked(
    keys: SampleKeys, length: int, t: Array, alpha_0: float, num_rows: int, low_variance: bool
) -> tuple[NDArray[np.bool_], Array]:
    """Draws which tokens of z_t are masked, bool [B, L], with the weight of a masked token, [B, 1].

    t: the time of each row, [B, 1]. num_rows: the number of rows of the global batch that take the
    diffusion term, by which the weights are normalised. Source: Eso-LM section 3 (arXiv
    2506.01928); alpha_0 = 1 is MDLM.
    """
    masked = keys.uniforms(Purpose.MASK, length) < 1.0 - alpha(t, alpha_0)
    weights = np.ones_like(t) if low_variance else elbo_weight(t, alpha_0)
    return masked, weights / (num_rows * length)
