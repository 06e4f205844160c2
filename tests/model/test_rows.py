"""Generation orders and what is fed in them."""

import numpy as np
import torch

from esolm.model.attention import AttentionPattern
from esolm.model.objectives import SampleKeys
from esolm.model.objectives.rows import MaskedRows, clean_first, natural_scores

KEYS = SampleKeys(0, np.array([0, 1]), np.array([0, 1]), 2)
MASKED = np.array([[True, False, True, False, True], [False, True, True, True, False]])
TOKENS = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])


def test_natural_scores_keep_the_natural_order_within_both_parts() -> None:
    order = clean_first(MASKED, natural_scores(5))
    assert order.tolist() == [[1, 3, 0, 2, 4], [0, 4, 1, 2, 3]]


def test_random_scores_order_both_parts_and_never_mix_them() -> None:
    generator = np.random.default_rng(0)
    masked = generator.random((2000, 4)) < 0.5
    order = clean_first(masked, generator.random((2000, 4)))
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    sorted_masked = np.take_along_axis(masked, order, axis=1)
    assert (np.diff(sorted_masked.astype(int), axis=1) >= 0).all()
    both_clean = ~masked[:, :2].any(axis=1)
    first_before_second = np.argsort(order, axis=1)[both_clean]
    share = (first_before_second[:, 0] < first_before_second[:, 1]).mean()
    assert abs(share - 0.5) < 0.1


def test_rows_in_order() -> None:
    rows = MaskedRows.in_order(TOKENS, MASKED, clean_first(MASKED, natural_scores(5)))
    one = rows.one_stream(99, AttentionPattern.PREFIX, KEYS)
    assert one.tokens.tolist() == [[11, 13, 99, 99, 99], [20, 24, 99, 99, 99]]
    assert one.positions.tolist() == [[1, 3, 0, 2, 4], [0, 4, 1, 2, 3]]
    assert one.prefix_length.tolist() == [2, 2]
    assert one.dropout_keys.tolist() == KEYS.dropout_keys().tolist()
    two = rows.two_streams(99, AttentionPattern.TWO_STREAM_PREFIX, KEYS)
    assert two.tokens.tolist()[0] == [11, 13, 99, 99, 99, 11, 13, 10, 12, 14]
    assert two.positions.tolist()[0] == [1, 3, 0, 2, 4, 1, 3, 0, 2, 4]
    targets = rows.targets(np.array([[0.5], [0.25]]))
    assert targets.labels.tolist() == [[11, 13, 10, 12, 14], [20, 24, 21, 22, 23]]
    assert targets.weights.tolist() == [[0, 0, 0.5, 0.5, 0.5], [0, 0, 0.25, 0.25, 0.25]]
    index, labels, weights = targets.sparse()
    assert index.tolist() == [2, 3, 4, 7, 8, 9]
    assert labels.tolist() == [10, 12, 14, 21, 22, 23]
    assert weights.tolist() == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_rows_in_place() -> None:
    rows = MaskedRows.in_place(TOKENS, MASKED)
    one = rows.one_stream(99, AttentionPattern.BIDIRECTIONAL, KEYS)
    assert one.tokens.tolist() == [[99, 11, 99, 13, 99], [20, 99, 99, 99, 24]]
    assert one.positions.tolist() == [[0, 1, 2, 3, 4]] * 2
    two = rows.two_streams(99, AttentionPattern.BLOCK_TWO_STREAM, KEYS, block_size=5)
    assert two.block_size == 5
    assert two.rows()[:, 1].tolist() == [5, 5]


def test_rows_travel_as_integers() -> None:
    rows = MaskedRows.in_order(TOKENS, MASKED, clean_first(MASKED, natural_scores(5)))
    packed = rows.one_stream(99, AttentionPattern.PREFIX, KEYS).rows()
    assert packed.dtype is torch.int64
    assert packed[:, 0].tolist() == [AttentionPattern.PREFIX.index] * 2
    assert packed[:, 1].tolist() == [1, 1]
    assert packed[:, 2].tolist() == [2, 2]
    assert packed[:, 3].tolist() == KEYS.dropout_keys().tolist()
