"""Figures of samples by themselves: how varied they are, as token ids."""

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


def unigram_entropy(tokens: Int64Array) -> float:
    """Entropy of the token frequencies within a sample, in nats, averaged over samples [N, L].

    At most log L. Low values mean repetition, which a judge may take for quality.
    """
    entropies = []
    for row in tokens:
        _, counts = np.unique(row, return_counts=True)
        share = counts / counts.sum()
        entropies.append(-float((share * np.log(share)).sum()))
    return float(np.mean(entropies))


def distinct(tokens: Int64Array, n: int) -> float | None:
    """Different n-grams over all n-grams of samples [N, L]; None if the samples are shorter."""
    if tokens.shape[1] < n:
        return None
    grams = np.lib.stride_tricks.sliding_window_view(tokens, n, axis=1).reshape(-1, n)
    return len(np.unique(grams, axis=0)) / len(grams)
