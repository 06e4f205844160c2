# mypy: ignore-errors
"""The exact log-likelihood of texts under an order of writing."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .sampling_esolm import Stream, random_numbers


def has_likelihood(config: Any) -> bool:
    """Whether a network gives the exact likelihood of a text from left to right."""
    return config.trained_as == "ar" or config.trained_as.startswith("esolm")


@torch.inference_mode()
def left_to_right_log_p(network: Any, ids: Tensor) -> Tensor:
    """log p of every token at every place given those to its left, float32 [B, L, V].

    NaN at a first place that the network never predicts.
    """
    config = network.config
    if config.trained_as != "ar":
        masks = torch.full_like(ids, config.mask_token_id)
        logits = network(torch.cat([masks, ids], dim=1), attention_pattern="two_stream").logits
        return logits.float().log_softmax(-1)
    front, fed = config.prepend_token_id, ids[:, :-1]
    if front is not None:
        fed = torch.cat([ids.new_full((len(ids), 1), front), fed], dim=1)
    found = torch.full((*ids.shape, config.vocab_size), torch.nan, device=ids.device)
    if fed.shape[1]:
        logits = network(fed, attention_pattern="causal").logits
        found[:, -fed.shape[1] :] = logits.float().log_softmax(-1)
    return found


@torch.no_grad()
def log_likelihood(
    network: Any, ids: Tensor, order: Any = None, given: Any = None, num_orders: int = 1,
    alpha_0: float | None = None, seed: int = 0,
) -> Tensor:  # fmt: skip
    """log p in nats, float64 [B]; see `EsoLMForMaskedLM.log_likelihood`."""
    if ids.dim() != 2:
        raise ValueError(
            f"the texts have shape {tuple(ids.shape)}; give ids of shape [batch, tokens]"
        )
    if num_orders < 1 or (num_orders > 1 and order is not None):
        raise ValueError(f"num_orders is {num_orders}; it counts orders that are drawn, 1 or more")
    given = torch.zeros_like(ids, dtype=torch.bool) if given is None else torch.as_tensor(given)
    given = given.to(ids.device).bool().expand(ids.shape)
    if network.config.trained_as == "ar":
        _refuse(order is not None or num_orders > 1, network, "one order only, left to right")
        return _left_to_right(network, ids, given)
    is_b = network.config.trained_as == "esolm B"
    _refuse(not has_likelihood(network.config), network, "no exact likelihood")
    _refuse(
        not is_b and (order is not None or num_orders > 1), network,
        "an exact likelihood from left to right here, under other orders by esolm evaluate",
    )  # fmt: skip
    if order is not None:
        order = torch.as_tensor(order, device=ids.device).expand(ids.shape)
        if not torch.equal(
            order.sort(1).values, torch.arange(ids.shape[1]).to(order).expand_as(order)
        ):
            raise ValueError("an order names every place of a text once")
        return _of_order(network, ids, order, given)
    if num_orders == 1:
        return _of_order(network, ids, torch.arange(ids.shape[1]).to(ids).expand_as(ids), given)
    share = network.config.alpha_0 if alpha_0 is None else alpha_0
    share = 1.0 if share is None else share
    drawn = [
        _of_order(network, ids, drawn_orders(ids, share, seed, number), given)
        for number in range(num_orders)
    ]
    return torch.stack(drawn).logsumexp(0) - math.log(num_orders)


def _refuse(is_so: bool, network: Any, what: str) -> None:
    if is_so:
        raise ValueError(f"a network trained as '{network.config.trained_as}' has {what}")


def drawn_orders(ids: Tensor, alpha_0: float, seed: int, number: int) -> Tensor:
    """int64 [B, L]: Binomial(L, alpha_0) tokens in random order, the others from left to right."""
    orders = []
    for row in range(len(ids)):
        draws = random_numbers(seed, row, Stream.ORDER, number)
        is_last = draws.random(ids.shape[1]) >= alpha_0
        scores = np.where(is_last, 1.0 + np.arange(ids.shape[1]), draws.random(ids.shape[1]))
        orders.append(scores.argsort(kind="stable"))
    return torch.from_numpy(np.stack(orders)).to(ids.device)


def _of_order(network: Any, ids: Tensor, order: Tensor, given: Tensor) -> Tensor:
    """One pass over 2 L tokens; what is given comes first, and does not count."""
    order = order.gather(1, (~given).gather(1, order).int().argsort(dim=1, stable=True))
    x, counts = ids.gather(1, order), ~given.gather(1, order)
    z = torch.full_like(x, network.config.mask_token_id)
    logits = network(
        torch.cat([z, x], dim=1), torch.cat([order, order], dim=1), attention_pattern="two_stream"
    ).logits
    return _summed(logits, x, counts)


def _left_to_right(network: Any, ids: Tensor, given: Tensor) -> Tensor:
    """Each token by the output at the one before it."""
    front = network.config.prepend_token_id
    if front is None:
        logits, ids, given = network(ids[:, :-1]).logits, ids[:, 1:], given[:, 1:]
    else:
        fed = torch.cat([ids.new_full((len(ids), 1), front), ids[:, :-1]], dim=1)
        logits = network(fed).logits
    return _summed(logits, ids, ~given)


def _summed(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    chosen = logits.gather(-1, labels[..., None])[..., 0].double()
    log_p = chosen - logits.logsumexp(-1).double()
    return torch.where(counts, log_p, 0.0).sum(1)
