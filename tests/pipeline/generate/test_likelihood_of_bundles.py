"""`log_likelihood` against the decoder's own steps, that of training, and sums of p."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esolm.model.likelihood import order_log_likelihood, orders_log_likelihood
from esolm.pipeline.export.bundle.likelihood_esolm import drawn_orders
from esolm.pipeline.export.gate_network import bundle_logits
from tests.pipeline.generate.conftest import network
from tests.pipeline.generate.systems import MASK_ID, System

TOKENS = torch.randint(MASK_ID, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def esolm_b() -> Any:
    return System("esolm_b").model


def some_orders() -> Tensor:
    return torch.rand(3, 8, generator=torch.Generator().manual_seed(1)).argsort(1)


def test_equal_to_the_likelihood_of_training(esolm_b: Any) -> None:
    def logits(inputs: Any) -> Tensor:
        return bundle_logits(esolm_b, inputs)

    for order in (some_orders(), torch.arange(8).expand(3, 8)):
        expected = order_log_likelihood(logits, TOKENS, order.numpy(), MASK_ID).sum(1)
        found = esolm_b.log_likelihood(TOKENS, order=order)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    drawn = np.stack([drawn_orders(TOKENS, 0.5, 7, n).numpy() for n in range(4)], axis=1)
    each = orders_log_likelihood(logits, TOKENS, drawn, MASK_ID)
    expected = each.logsumexp(1) - np.log(4)
    found = esolm_b.log_likelihood(TOKENS, num_orders=4, alpha_0=0.5, seed=7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_equal_to_the_steps_of_the_decoder(esolm_b: Any) -> None:
    """Each token from those in front of it in the order, by a forward of its own."""
    order = some_orders()
    for row in range(3):
        total = 0.0
        for place in range(8):
            fed = TOKENS[row, order[row, : place + 1]].clone()[None]
            fed[0, -1] = MASK_ID
            logits = esolm_b(fed, order[row, None, : place + 1]).logits[0, -1]
            total += float(logits.log_softmax(-1)[TOKENS[row, order[row, place]]])
        assert float(esolm_b.log_likelihood(TOKENS, order=order)[row]) == pytest.approx(total)


@torch.no_grad()
def test_given_tokens_are_conditions(esolm_b: Any) -> None:
    """log p(all) = log p(given) + log p(rest | given), in the order that puts these in front."""
    given = torch.tensor([False, True, False, False, True, True, False, False])
    front_first = torch.cat([given.nonzero()[:, 0], (~given).nonzero()[:, 0]])
    whole = esolm_b.log_likelihood(TOKENS, order=front_first)
    rest = esolm_b.log_likelihood(TOKENS, given=given)
    shown = given.nonzero()[:, 0]
    total = torch.zeros(3, dtype=torch.float64)
    for end in range(1, len(shown) + 1):
        fed = TOKENS[:, shown[:end]].clone()
        fed[:, -1] = MASK_ID
        logits = esolm_b(fed, shown[:end].expand(3, -1)).logits[:, -1].log_softmax(-1)
        total += logits.gather(1, TOKENS[:, shown[end - 1], None])[:, 0]
    torch.testing.assert_close(whole, total + rest, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "ar"])
def test_all_texts_together_have_probability_one(name: str) -> None:
    model = System(name).model
    texts = torch.tensor(list(itertools.product(range(MASK_ID), repeat=3)))
    assert float(model.log_likelihood(texts).exp().sum()) == pytest.approx(1.0)


def test_a_first_token_that_is_given_does_not_count() -> None:
    ar = network(objective="ar", prepend_token_id=None)
    texts = torch.tensor([[4, *rest] for rest in itertools.product(range(29), repeat=2)])
    assert float(ar.log_likelihood(texts).exp().sum()) == pytest.approx(1.0)


def test_refusals(esolm_b: Any) -> None:
    with pytest.raises(ValueError, match="trained as 'mdlm' has no exact likelihood"):
        System("mdlm").model.log_likelihood(TOKENS)
    with pytest.raises(ValueError, match="one order only, left to right"):
        System("ar").model.log_likelihood(TOKENS, num_orders=3)
    with pytest.raises(ValueError, match="under other orders by esolm evaluate"):
        System("esolm_a").model.log_likelihood(TOKENS, order=some_orders())
    with pytest.raises(ValueError, match="names every place of a text once"):
        esolm_b.log_likelihood(TOKENS, order=torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_orders is 0"):
        esolm_b.log_likelihood(TOKENS, num_orders=0)
