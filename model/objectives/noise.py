"""The log-linear noise schedule, scaled by alpha_0.

alpha_t is the probability that a token is still clean at time t in [0, 1]. Source: Eso-LM
section 3 (arXiv 2506.01928) with the published code's floor: alpha_1 = 0.001 alpha_0.
"""

import numpy as np
from numpy.typing import NDArray

# Both the floor of the schedule and the smallest t that is drawn.
EPSILON = 1e-3

Array = NDArray[np.float64]


def alpha(t: Array, alpha_0: float) -> Array:
    """alpha_t = alpha_0 (1 - (1 - eps) t)."""
    return alpha_0 * (1.0 - (1.0 - EPSILON) * t)


def elbo_weight(t: Array, alpha_0: float) -> Array:
    """-alpha'_t / (1 - alpha_t), the weight of a masked token in the diffusion bound."""
    return alpha_0 * (1.0 - EPSILON) / (1.0 - alpha(t, alpha_0))


def stratified_t(uniform: Array, slot: NDArray[np.int64], num_slots: int) -> Array:
    """t of each row, one per stratum of the global batch: u -> (u + slot) / n, kept above eps."""
    return (1.0 - EPSILON) * (uniform + slot) / num_slots + EPSILON
