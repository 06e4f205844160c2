"""Likelihoods of whole sequences under a trained network, in nats.

Everything reads the network through a function NetworkInput -> logits [B, L, V], so that a training
network (`Network.all_logits`) and an exported one are measured by the same code. Draws are keyed by
(seed, global sample index): a sequence's values do not depend on its batch.

Shape letters: B sequences, L tokens, K orders or draws.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.attention import AttentionPattern
from model.inputs import NetworkInput, Targets
from model.objectives import AutoRegressive, Objective, SampleKeys
from model.objectives.draws import Purpose
from model.objectives.rows import MaskedRows, clean_first, natural_scores

Logits = Callable[[NetworkInput], Tensor]


def order_log_likelihood(
    logits: Logits, tokens: Tensor, order: NDArray[np.int64], mask_id: int
) -> Tensor:
    """log p of each token given all before it in the order, float64 [B, L], in that order.

    tokens: int64 [B, L] at natural positions. order: natural positions, [B, L], one order per row.
    For networks of Eso-LM (B): one pass over 2L tokens, the noised stream all masks, which is how
    the network decodes one token per step. Source: Eso-LM section 4 (arXiv 2506.01928).
    """
    rows = MaskedRows.in_order(tokens, np.ones(order.shape, dtype=np.bool_), order)
    unused = SampleKeys(0, np.zeros(len(order), np.int64), np.zeros(len(order), np.int64), 1)
    inputs = rows.two_streams(mask_id, AttentionPattern.TWO_STREAM, unused)
    return token_log_p(logits, inputs, rows.labels)


def left_to_right_log_likelihood(
    logits: Logits, objective: AutoRegressive, tokens: Tensor
) -> Tensor:
    """log p of each predicted token given those to its left, float64 [B, L].

    [B, L - 1] without a prepended token: the first one is given.
    """
    first = np.zeros(len(tokens), np.int64)
    inputs, targets = objective.corrupt(tokens, SampleKeys(0, first, first, 1))
    return token_log_p(logits, inputs, targets.labels)


def draw_orders(
    seed: int, sample_index: NDArray[np.int64], length: int, alpha_0: float, num_orders: int
) -> NDArray[np.int64]:
    """Generation orders [B, K, L], each sequence's own, as two-phase decoding has them.

    A prefix of Binomial(L, alpha_0) tokens in random order, the rest from left to right. The first
    orders are the same however many are drawn.
    """
    keys = SampleKeys(seed, sample_index, sample_index, 1)
    shape = (len(sample_index), num_orders, length)
    last = keys.uniforms(Purpose.MASK, num_orders * length).reshape(shape) < 1.0 - alpha_0
    random = keys.uniforms(Purpose.ORDER, num_orders * length).reshape(shape)
    scores = np.where(last, natural_scores(length), random)
    flat = clean_first(last.reshape(-1, length), scores.reshape(-1, length))
    return flat.reshape(shape)


def orders_log_likelihood(
    logits: Logits, tokens: Tensor, orders: NDArray[np.int64], mask_id: int
) -> Tensor:
    """log p of each sequence under each of its orders: float64 [B, K], one pass per order."""
    columns = [
        order_log_likelihood(logits, tokens, orders[:, k], mask_id).sum(1)
        for k in range(orders.shape[1])
    ]
    return torch.stack(columns, dim=1)


def importance_bound(log_p_BK: Tensor) -> Tensor:
    """-log of the mean over K orders of p: [B, K] -> [B], a bound on -log p that tightens with K.

    In expectation it falls monotonically to -log p (Burda et al., arXiv 1509.00519, theorem 1).
    """
    return math.log(log_p_BK.shape[1]) - log_p_BK.logsumexp(1)


def nelbo(
    logits: Logits,
    objective: Objective,
    tokens: Tensor,
    sample_index: NDArray[np.int64],
    seed: int,
    num_draws: int,
) -> dict[str, Tensor]:
    """An estimate of each sequence's negative bound by loss term, float64 [B]: their sum bounds it.

    A sequence is repeated as a global batch of its own, num_draws rows shared among the objective's
    terms with t stratified over them; one pass per draw. The bound speaks of
    `objective.predicted_tokens` tokens.

    Raises ValueError if num_draws leaves a term of the objective without a row.
    """
    objective = objective.for_validation()
    seq_len = tokens.shape[1]
    terms = objective.terms(num_draws)
    if len(terms) < len(objective.work(seq_len)):
        raise ValueError(f"{num_draws} draws leave a term of {objective} without a row")
    sums = {term: torch.zeros(len(tokens), dtype=torch.float64) for term in terms}
    for term, slots in terms.items():
        for slot in slots:
            draw = sample_index * num_draws + slot
            keys = SampleKeys(seed, draw, np.full(len(tokens), slot), num_draws)
            sums[term] += _weighted_nll(logits, *objective.corrupt(tokens, keys))
    return {term: total * objective.predicted_tokens(seq_len) for term, total in sums.items()}


def _weighted_nll(logits: Logits, inputs: NetworkInput, targets: Targets) -> Tensor:
    """float64 [B]; the labels of unweighted positions may be impossible and do not count."""
    log_p = token_log_p(logits, inputs, targets.labels)
    return -torch.where(targets.weights > 0, log_p * targets.weights, 0.0).sum(1)


@torch.no_grad()
def token_log_p(logits: Logits, inputs: NetworkInput, labels: Tensor) -> Tensor:
    """log p of each label [B, L], float64 on the CPU, whatever device the network computes on."""
    all_logits = logits(inputs)
    labels = labels.to(all_logits.device)
    chosen = all_logits.gather(-1, labels[..., None])[..., 0].double()
    return (chosen - all_logits.logsumexp(-1).double()).cpu()
