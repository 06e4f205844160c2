"""Dropout keyed by (sample, site, token, feature)."""

import pytest
import torch
from torch import Tensor

from esolm.model import dropout
from esolm.model.dropout import Dropout, feature_salts, keyed_dropout, site_salt, token_keys

KEYS = torch.tensor([1, -9, 2**62])
ONES = torch.ones(3 * 50, 200)


def rows_dropout(hidden: Tensor, keys: Tensor, site: int, probability: float) -> Tensor:
    """Dropout of whole rows: every token of every key."""
    return part_dropout(hidden, keys, site, probability, hidden.shape[0] // keys.shape[0], 0)


def part_dropout(
    hidden: Tensor, keys: Tensor, site: int, probability: float, seq_len: int, first_token: int
) -> Tensor:
    """Dropout of consecutive tokens out of those of every key."""
    tokens, width = hidden.shape
    keys_T = token_keys(keys, site_salt(site), tokens, seq_len, first_token, torch.tensor(0))
    return keyed_dropout(hidden, Dropout(keys_T, feature_salts(width, keys.device), probability))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_rate_and_expectation(probability: float) -> None:
    out = rows_dropout(ONES, KEYS, 0, probability)
    assert out.unique().tolist() == [0.0, pytest.approx(1.0 / (1.0 - probability))]
    dropped = float((out == 0).float().mean())
    assert dropped == pytest.approx(probability, abs=4 * 0.5 / ONES.numel() ** 0.5)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.06)
    for dim in (0, 1):  # no row and no column is treated apart
        rates = (out == 0).float().mean(dim)
        spread = (probability * (1 - probability) / ONES.shape[dim]) ** 0.5
        assert (rates - probability).abs().max() < 5 * spread


def test_values_are_frozen() -> None:
    out = rows_dropout(torch.ones(4, 6), torch.tensor([1, -9]), 3, 0.5)
    expected = [[2, 0, 0, 2, 0, 0], [0, 0, 0, 2, 0, 2], [2, 0, 2, 0, 2, 2], [2, 2, 2, 0, 2, 2]]
    assert out.tolist() == expected


def splitmix64(x: int) -> int:
    """The finaliser of splitmix64 in whole numbers (Steele et al., OOPSLA 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def hash_of(key: int, *places: int) -> int:
    for place in places:
        key = splitmix64((key + (place + 1) * 0x9E3779B97F4A7C15) % 2**64)
    return key


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("chunk", [1, 3 * 20, 1 << 18])
def test_equals_the_hash_in_whole_numbers(
    monkeypatch: pytest.MonkeyPatch, probability: float, chunk: int
) -> None:
    monkeypatch.setattr(dropout, "CHUNK", chunk)
    hidden = torch.randn(3 * 8, 20, requires_grad=True)
    out = rows_dropout(hidden, KEYS, 5, probability)
    (gradient,) = torch.autograd.grad(out, hidden, torch.ones_like(out))
    keep = torch.tensor(
        [
            [
                hash_of(key, 5, token, feature) >> 40 >= int(probability * 2**24)
                for feature in range(20)
            ]
            for key in KEYS.tolist()
            for token in range(8)
        ]
    )
    assert torch.equal(out, hidden * keep / (1.0 - probability))
    assert torch.equal(gradient, keep / (1.0 - probability))


def test_same_key_same_mask_and_all_else_differs() -> None:
    out = rows_dropout(ONES, KEYS, 0, 0.5)
    assert torch.equal(out, rows_dropout(ONES, KEYS, 0, 0.5))
    sites = rows_dropout(ONES, KEYS, 1, 0.5)
    rows = out.view(3, 50, 200)
    for one, other in (
        (out, sites),
        (rows[0], rows[1]),
        (rows[:, 0], rows[:, 1]),
        (out[:, 0], out[:, 1]),
    ):
        agreement = float((one == other).float().mean())
        assert abs(agreement - 0.5) < 0.2


def test_a_row_keeps_its_mask_in_another_batch_and_when_it_is_cut() -> None:
    rows = rows_dropout(ONES, KEYS, 2, 0.3).view(3, 50, 200)
    alone = rows_dropout(ONES[:50], KEYS[1:2], 2, 0.3)
    assert torch.equal(alone, rows[1])
    cut = rows_dropout(ONES[:75], KEYS, 2, 0.3).view(3, 25, 200)
    assert torch.equal(cut, rows[:, :25])


def test_a_rank_with_part_of_the_tokens_draws_its_part_of_the_mask() -> None:
    whole = rows_dropout(ONES, KEYS, 2, 0.3)
    parts = [part_dropout(ONES[i : i + 30], KEYS, 2, 0.3, 50, i) for i in range(0, 150, 30)]
    assert torch.equal(torch.cat(parts), whole)


def test_gradient_is_the_mask() -> None:
    hidden = torch.randn(6, 4, requires_grad=True)
    out = rows_dropout(hidden, KEYS, 0, 0.5)
    (gradient,) = torch.autograd.grad(out.sum(), hidden)
    assert torch.equal(gradient, rows_dropout(torch.ones(6, 4), KEYS, 0, 0.5))


def test_a_rank_with_tokens_from_here_and_there_of_each_row_draws_theirs() -> None:
    whole = rows_dropout(ONES, KEYS, 2, 0.3).view(3, 50, 200)
    places = torch.tensor([1, 3, 4, 49])
    keys_T = token_keys(KEYS, site_salt(2), 12, 4, 0, torch.tensor(0), places)
    salts_D = feature_salts(200, KEYS.device)
    held = keyed_dropout(torch.ones(12, 200), Dropout(keys_T, salts_D, 0.3))
    assert torch.equal(held.view(3, 4, 200), whole[:, places])
