import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.pipeline.data.index import SampleIndex, permute

SIZES = [1, 2, 3, 1000, 4097]


def epoch_of(size: int, seed: int, epoch: int) -> list[int]:
    indices = np.arange(size) + epoch * size
    epochs, sequences = SampleIndex(size, seed).locate(indices)
    assert (epochs == epoch).all()
    return sequences.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_every_epoch_is_an_exact_permutation(size: int) -> None:
    for epoch in (0, 1, 2, 10**9 // size):
        assert sorted(epoch_of(size, 5, epoch)) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_of(1000, seed, epoch)) for seed in (0, 1, -1) for epoch in range(3)}
    assert len(orders) == 9


def test_small_permutations_are_equally_likely() -> None:
    found = [tuple(epoch_of(3, seed, 0)) for seed in range(1200)]
    counts = [found.count(order) for order in set(found)]
    assert len(counts) == 6
    assert min(counts) > 150
    assert max(counts) < 250


def test_order_looks_random() -> None:
    size = 100_003
    order = permute(np.arange(size), size, 1, np.zeros(size, dtype=np.int64))
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.02
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02


def test_data_order_is_frozen() -> None:
    """A change here would change the data order of every run: never edit these numbers."""
    epochs, sequences = SampleIndex(1000, 0).locate(np.array([0, 1, 2, 999, 1000, 10**9]))
    assert epochs.tolist() == [0, 0, 0, 0, 1, 1_000_000]
    assert sequences.tolist() == [852, 471, 171, 878, 920, 662]
    _, sequences = SampleIndex(10**9 + 7, -5).locate(np.array([0, 1, 10**12, 2**62]))
    assert sequences.tolist() == [502553785, 327664638, 303529752, 644869378]


def test_any_batch_of_indices_gives_the_same_answers() -> None:
    index = SampleIndex(12_345, 9)
    numbers = np.arange(10**9, 10**9 + 64)
    together = index.locate(numbers)
    for i, number in enumerate(numbers):
        alone = index.locate(np.array([number]))
        assert (alone[0][0], alone[1][0]) == (together[0][i], together[1][i])


def test_no_shuffle_counts_up() -> None:
    epochs, sequences = SampleIndex(3, 1, "none").locate(np.arange(7))
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert sequences.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(DataError, match="'window', must be one of: global, none"):
        SampleIndex(3, 1, "window")
    with pytest.raises(DataError, match="0 sequences"):
        SampleIndex(0, 1)
