"""Figures of samples by themselves: how varied their token ids are."""

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


def unigram_entropy(tokens: Int64Array) -> float:
    """Returns the entropy of the token frequencies within a sample, averaged over samples [N, L].

    It is in nats and at most log L. Low values mean repetition, which a judge may take for quality.
    """
    entropies = []
    for row in tokens:
        _, counts = np.unique(row, return_counts=True)
        share = counts / counts.sum()
        entropies.append(-float((share * np.log(share)).sum()))
    return float(np.mean(entropies))


def distinct(tokens: Int64Array, n: int) -> float | None:
    """Returns the share of different n-grams among all n-grams of samples [N, L].

    It is None if the samples are shorter than n.
    """
    if tokens.shape[1] < n:
        return None
    grams = np.lib.stride_tricks.sliding_window_view(tokens, n, axis=1).reshape(-1, n)
    return len(np.unique(grams, axis=0)) / len(grams)
