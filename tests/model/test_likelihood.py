"""Likelihoods and bounds against the truth of a model that is small enough to enumerate."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from esolm.model.likelihood import (
    draw_orders,
    draw_prefix_lengths,
    importance_bound,
    left_to_right_log_likelihood,
    nelbo,
    order_log_likelihood,
    orders_log_likelihood,
    prefix_order_log_likelihood,
)
from esolm.model.network import Network
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, Objective
from tests.model.enumeration import (
    LENGTH,
    MASK_ID,
    ORDERS,
    SEQUENCES,
    EnumeratedModel,
    order_probabilities,
)
from tests.model.reference import ReferenceNetwork, stepwise_log_p

ALPHAS = [0.0, 0.25, 0.5, 1.0]
# A sequence on which the orders of the random model disagree.
CHOSEN = SEQUENCES[50]


@pytest.fixture(scope="module")
def model(make_network: Callable[..., Network]) -> EnumeratedModel:
    sizes = {"hidden_size": 8, "ffn_hidden_size": 16, "vocab_size": 4}
    return EnumeratedModel(make_network(scale=0.3, **sizes))


def esolm(alpha_0: float) -> EsoLM:
    return EsoLM(MASK_ID, alpha_0, kappa=alpha_0 if alpha_0 in (0.0, 1.0) else 0.5)


def assert_mean(values: Tensor, expected: float) -> None:
    """The mean of independent draws, within four standard errors; seeds are fixed."""
    error = float(values.std()) / len(values) ** 0.5
    assert float(values.mean()) == pytest.approx(expected, abs=4 * error + 1e-9)


def test_every_order_is_a_distribution(model: EnumeratedModel) -> None:
    sums = model.log_p_of_order.exp().sum(0)
    torch.testing.assert_close(sums, torch.ones(len(ORDERS), dtype=torch.float64))
    assert float(model.log_p_of_order.std(1).mean()) > 0.1, "the orders should disagree"


@pytest.mark.parametrize("alpha_0", ALPHAS)
def test_orders_are_drawn_as_two_phase_decoding_has_them(alpha_0: float) -> None:
    count = 20_000
    drawn = draw_orders(0, np.arange(count), LENGTH, alpha_0, 1)[:, 0]
    index = {order: k for k, order in enumerate(ORDERS)}
    counts = np.bincount([index[tuple(order)] for order in drawn.tolist()], minlength=len(ORDERS))
    expected = order_probabilities(alpha_0).numpy() * count
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    degrees = possible.sum() - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5 + 1e-9


def test_orders_belong_to_the_sequence_and_nest() -> None:
    many = draw_orders(5, np.array([3, 8]), 16, 0.5, 6)
    assert many.shape == (2, 6, 16)
    assert (np.sort(many, axis=2) == np.arange(16)).all()
    assert (many[0] != many[1]).any()
    assert (many[0, 0] != many[0, 1]).any()
    assert (draw_orders(5, np.array([8]), 16, 0.5, 2)[0] == many[1, :2]).all()


@pytest.mark.parametrize("alpha_0", ALPHAS)
def test_importance_bound_falls_to_the_exact_likelihood(
    model: EnumeratedModel, alpha_0: float
) -> None:
    exact = model.nll(alpha_0)
    bounds = [model.expected_importance_bound(alpha_0, k) for k in (1, 2, 3)]
    for looser, tighter in zip(bounds, [*bounds[1:], exact], strict=True):
        assert (looser >= tighter - 1e-12).all()
        if alpha_0 > 0:
            assert float((looser - tighter).mean()) > 0.01
        else:
            torch.testing.assert_close(looser, tighter)


@pytest.mark.parametrize("alpha_0", ALPHAS)
@pytest.mark.parametrize("num_orders", [1, 3])
def test_importance_bound_has_its_expectation(
    model: EnumeratedModel, alpha_0: float, num_orders: int
) -> None:
    rows = 400
    orders = draw_orders(1, np.arange(rows), LENGTH, alpha_0, num_orders)
    log_p = orders_log_likelihood(
        model.network.all_logits, CHOSEN.expand(rows, LENGTH), orders, MASK_ID
    )
    assert log_p.shape == (rows, num_orders)
    expected = model.expected_importance_bound(alpha_0, num_orders)[50]
    assert_mean(importance_bound(log_p), float(expected))


def test_importance_bound_of_many_orders_reaches_the_exact_likelihood(
    model: EnumeratedModel,
) -> None:
    orders = draw_orders(2, np.arange(10), LENGTH, 0.5, 300)
    tokens = CHOSEN.expand(10, LENGTH)
    log_p = orders_log_likelihood(model.network.all_logits, tokens, orders, MASK_ID)
    gap = importance_bound(log_p).mean() - model.nll(0.5)[50]
    assert float(gap.abs()) < 0.05


@pytest.mark.parametrize("prefix", range(LENGTH + 1))
def test_order_and_prefix_of_variant_a(model: EnumeratedModel, prefix: int) -> None:
    """A distribution, and by hand: a token at a time, those in front in both directions."""
    order = ORDERS[17]
    orders, lengths = np.tile(order, (len(SEQUENCES), 1)), np.full(len(SEQUENCES), prefix)
    log_p = prefix_order_log_likelihood(
        model.network.all_logits, SEQUENCES, orders, lengths, MASK_ID
    )
    assert float(log_p.sum(1).exp().sum()) == pytest.approx(1.0)
    reference = ReferenceNetwork(model.network.config, dict(model.network.named_parameters()))
    by_hand = stepwise_log_p(reference.logits, CHOSEN, order, prefix, MASK_ID)
    for i, expected in enumerate(by_hand.tolist()):
        assert float(log_p[50, i]) == pytest.approx(expected, abs=1e-9)
    if prefix < 2:
        causal = order_log_likelihood(model.network.all_logits, SEQUENCES, orders, MASK_ID)
        torch.testing.assert_close(log_p, causal)


def test_prefixes_of_different_lengths_in_one_batch(model: EnumeratedModel) -> None:
    index = np.arange(40)
    draw = (1, index, LENGTH, 0.5, 2)
    orders, lengths = draw_orders(*draw), draw_prefix_lengths(*draw)
    assert set(lengths.flatten()) == set(range(LENGTH + 1))
    rest = [order[size:] for order, size in zip(orders[:, 0], lengths[:, 0], strict=True)]
    assert all((np.diff(part) > 0).all() for part in rest)
    tokens = SEQUENCES[:40]
    together = orders_log_likelihood(model.network.all_logits, tokens, orders, MASK_ID, lengths)
    for row in (0, 7, 39):
        for k in range(2):
            alone = prefix_order_log_likelihood(
                model.network.all_logits, tokens[row : row + 1], orders[row : row + 1, k],
                lengths[row : row + 1, k], MASK_ID,
            )  # fmt: skip
            assert float(together[row, k]) == pytest.approx(float(alone.sum()), abs=1e-9)
    assert (importance_bound(together) <= -together.mean(1) + 1e-12).all()


@pytest.mark.parametrize("alpha_0", ALPHAS)
def test_nelbo_lies_above_the_exact_likelihood(model: EnumeratedModel, alpha_0: float) -> None:
    """On average over the model's own distribution.

    Not for each sequence: in the diffusion term a mask also sees the masks before it, in one-token
    decoding it does not, so the two speak of slightly different conditionals.
    """
    exact, bound = model.nll(alpha_0), model.nelbo(alpha_0)
    gap = float(((-exact).exp() * (bound - exact)).sum())
    if alpha_0 == 0:
        torch.testing.assert_close(bound, exact)
    else:
        assert gap > 0.01
        assert float((bound - exact).mean()) > 0.1


@pytest.mark.parametrize("alpha_0", ALPHAS)
def test_nelbo_estimate_has_its_expectation(model: EnumeratedModel, alpha_0: float) -> None:
    rows = 500
    terms = nelbo(
        model.network.all_logits,
        esolm(alpha_0),
        CHOSEN.expand(rows, LENGTH),
        np.arange(rows),
        seed=3,
        num_draws=8,
    )
    assert set(terms) == {
        *(["diffusion"] if alpha_0 > 0 else []),
        *(["sequential"] if alpha_0 < 1 else []),
    }
    estimates = torch.stack(list(terms.values())).sum(0)
    assert estimates.dtype is torch.float64
    assert_mean(estimates, float(model.nelbo(alpha_0)[50]))


def test_nelbo_belongs_to_the_sequence(model: EnumeratedModel) -> None:
    """Not to its batch."""
    logits, objective = model.network.all_logits, esolm(0.5)
    together = nelbo(logits, objective, SEQUENCES[10:14], np.arange(10, 14), 0, 4)
    alone = nelbo(logits, objective, SEQUENCES[12:13], np.array([12]), 0, 4)
    for term, value in alone.items():
        torch.testing.assert_close(value, together[term][2:3])


def test_nelbo_needs_a_draw_for_each_term(model: EnumeratedModel) -> None:
    with pytest.raises(ValueError, match="1 draws leave a term"):
        nelbo(model.network.all_logits, esolm(0.5), SEQUENCES[:1], np.array([0]), 0, 1)


def test_esolm_without_diffusion_has_the_exact_likelihood(model: EnumeratedModel) -> None:
    logits = model.network.all_logits
    bound = nelbo(logits, esolm(0.0), SEQUENCES, np.arange(81), 0, 1)["sequential"]
    order = np.tile(np.arange(LENGTH), (81, 1))
    exact = -order_log_likelihood(logits, SEQUENCES, order, MASK_ID).sum(1)
    torch.testing.assert_close(bound, exact)
    torch.testing.assert_close(bound, model.nll(0.0))


@pytest.mark.parametrize("prepend_id", [None, 0, MASK_ID])
def test_autoregressive_likelihood_is_exact(model: EnumeratedModel, prepend_id: int | None) -> None:
    logits, objective = model.network.all_logits, AutoRegressive(prepend_id)
    log_p = left_to_right_log_likelihood(logits, objective, SEQUENCES)
    assert log_p.shape == (81, objective.predicted_tokens(LENGTH))
    total = float(log_p.sum(1).exp().sum())
    assert total == pytest.approx(1.0 if prepend_id is not None else 3.0)  # given the first of 3
    bound = nelbo(logits, objective, SEQUENCES, np.arange(81), 0, 1)["sequential"]
    torch.testing.assert_close(bound, -log_p.sum(1), rtol=1e-7, atol=1e-7)


def test_single_token_blocks_have_an_exact_likelihood(model: EnumeratedModel) -> None:
    """BD3-LM with blocks of one token is left to right: its validation loss is no mere bound."""
    objective = BD3LM(MASK_ID, block_size=1, keep_first=False)
    nll = nelbo(model.network.all_logits, objective, SEQUENCES, np.arange(81), 0, 1)["diffusion"]
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-6)
    order = np.tile(np.arange(LENGTH), (81, 1))
    exact = -order_log_likelihood(model.network.all_logits, SEQUENCES, order, MASK_ID).sum(1)
    torch.testing.assert_close(nll, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "share"),
    [(MDLM(MASK_ID), 0.999), (esolm(0.5), 0.9995), (BD3LM(MASK_ID, 2, keep_first=False), 1.0)],
)
def test_bounds_of_a_factorised_model_are_closed_forms(
    make_network: Callable[..., Network], objective: Objective, share: float
) -> None:
    """Without attention every mask predicts the same p: the bound is share * sum of -log p.

    The share falls short of 1 by what the noise schedule leaves out, alpha_0 / 1000.
    """
    network = make_network(vocab_size=4)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("attention.out.weight"):
                parameter.zero_()
    rows = 300
    tokens = CHOSEN.expand(rows, LENGTH)
    natural = np.tile(np.arange(LENGTH), (1, 1))
    exact = -float(order_log_likelihood(network.all_logits, CHOSEN[None], natural, MASK_ID).sum())
    terms = nelbo(network.all_logits, objective, tokens, np.arange(rows), 4, 32)
    assert_mean(torch.stack(list(terms.values())).sum(0), share * exact)
