"""Likelihoods of whole sequences under a trained network, in nats.

Everything reads the network through a function NetworkInput -> logits [B, L, V], so that a training
network (`Network.all_logits`) and an exported one are measured by the same code. Draws are keyed by
(seed, global sample index), so the values of a sequence do not depend on its batch.

Shape letters: B sequences, L tokens, K orders or draws.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.objectives import Objective, SampleKeys
from esolm.model.objectives.draws import Purpose
from esolm.model.objectives.rows import Mask, MaskedRows, clean_first, natural_scores

Logits = Callable[[NetworkInput], Tensor]


def order_log_likelihood(
    logits: Logits,
    tokens: Tensor,
    order: NDArray[np.int64],
    mask_id: int,
    eos_id: int | None = None,
) -> Tensor:
    """Returns log p of each token given all tokens before it in the order.

    The result is float64 [B, L] and stands in that order. tokens: int64 [B, L] at natural
    positions. order: natural positions [B, L], one order per row. eos_id: what ends documents that
    are kept apart; the order of each is then that in which its tokens come.

    This is for networks of Eso-LM (B), and of (A) without a diffusion phase; the published code
    measures every (A) so, whatever its decoder does. It takes one pass over
    2L tokens with a noised stream of nothing but masks, which is how the network decodes one token
    per step. Source: Eso-LM section 4 (arXiv 2506.01928).
    """
    rows = MaskedRows.in_order(tokens, np.ones(order.shape, dtype=np.bool_), order, eos_id)
    inputs = rows.two_streams(mask_id, AttentionPattern.TWO_STREAM, _no_keys(order))
    return token_log_p(logits, inputs, rows.labels)


def prefix_order_log_likelihood(
    logits: Logits,
    tokens: Tensor,
    order: NDArray[np.int64],
    prefix_length: NDArray[np.int64],
    mask_id: int,
    eos_id: int | None = None,
) -> Tensor:
    """Returns what `order_log_likelihood` does, for networks of Eso-LM (A).

    prefix_length: [B], how many tokens of the order belong to the diffusion phase, which here has
    one token per step. These tokens see each other in both directions, so a further one changes
    what the others compute; each of them takes a pass over those before it. The other tokens of
    the order take one pass over 2L tokens together.
    """
    rows = MaskedRows.in_order(tokens, _natural_mask(order, prefix_length), order, eos_id)
    sequential = rows.two_streams(mask_id, AttentionPattern.TWO_STREAM_PREFIX, _no_keys(order))
    log_p = token_log_p(logits, sequential, rows.labels)
    for place in range(int(prefix_length.max())):
        chosen = torch.from_numpy(prefix_length > place)
        fed = rows.labels[chosen, : place + 1].clone()
        fed[:, place] = mask_id
        clean = torch.full((len(fed),), place)
        inputs = NetworkInput(
            tokens=fed,
            positions=rows.positions[chosen, : place + 1],
            pattern=AttentionPattern.PREFIX,
            prefix_length=clean,
            dropout_keys=torch.zeros_like(clean),
            separate=rows.separate,
        )
        log_p[chosen, place] = token_log_p(logits, inputs, rows.labels[chosen, : place + 1])[:, -1]
    return log_p


def left_to_right_log_likelihood(logits: Logits, objective: Objective, tokens: Tensor) -> Tensor:
    """Returns log p of each predicted token given those to its left, float64 [B, L].

    The shape is [B, L - 1] if the first token is given. This is for objectives whose orders are
    `Orders.LEFT_TO_RIGHT`.
    """
    first = np.zeros(len(tokens), np.int64)
    inputs, targets = objective.corrupt(tokens, SampleKeys(0, first, first, 1))
    return token_log_p(logits, inputs, targets.labels)


def draw_orders(
    seed: int, sample_index: NDArray[np.int64], length: int, alpha_0: float, num_orders: int
) -> NDArray[np.int64]:
    """Draws generation orders [B, K, L], K for each sequence, distributed as in two-phase decoding.

    An order is a prefix of Binomial(L, alpha_0) tokens in random order, then the others from left
    to right. The first orders are the same however many are drawn.
    """
    keys = SampleKeys(seed, sample_index, sample_index, 1)
    last = _draw_last(keys, length, alpha_0, num_orders)
    random = keys.uniforms(Purpose.ORDER, num_orders * length).reshape(last.shape)
    scores = np.where(last, natural_scores(length), random)
    flat = clean_first(last.reshape(-1, length), scores.reshape(-1, length))
    return flat.reshape(last.shape)


def draw_prefix_lengths(
    seed: int, sample_index: NDArray[np.int64], length: int, alpha_0: float, num_orders: int
) -> NDArray[np.int64]:
    """Says how many tokens of each of the `draw_orders` belong to the diffusion phase: [B, K]."""
    keys = SampleKeys(seed, sample_index, sample_index, 1)
    lengths: NDArray[np.int64] = (~_draw_last(keys, length, alpha_0, num_orders)).sum(2)
    return lengths


def _draw_last(keys: SampleKeys, length: int, alpha_0: float, num_orders: int) -> Mask:
    """Draws which tokens are left to the sequential phase, bool [B, K, L]."""
    uniforms = keys.uniforms(Purpose.MASK, num_orders * length)
    last: Mask = uniforms.reshape(-1, num_orders, length) < 1.0 - alpha_0
    return last


def orders_log_likelihood(
    logits: Logits,
    tokens: Tensor,
    orders: NDArray[np.int64],
    mask_id: int,
    prefix_lengths: NDArray[np.int64] | None = None,
    on_order: Callable[[], None] = lambda: None,
    eos_id: int | None = None,
) -> Tensor:
    """Returns log p of each sequence under each of its orders, float64 [B, K].

    prefix_lengths: [B, K] for networks of Eso-LM (A) as they decode; None for (B), which takes a
    pass per order, and for (A) as published. on_order: called when an order of all is done.
    """
    columns = []
    for k in range(orders.shape[1]):
        if prefix_lengths is None:
            log_p = order_log_likelihood(logits, tokens, orders[:, k], mask_id, eos_id)
        else:
            log_p = prefix_order_log_likelihood(
                logits, tokens, orders[:, k], prefix_lengths[:, k], mask_id, eos_id
            )
        columns.append(log_p.sum(1))
        on_order()
    return torch.stack(columns, dim=1)


def importance_bound(log_p_BK: Tensor) -> Tensor:
    """Returns -log of the mean of p over K orders, [B, K] -> [B]: an upper bound on -log p.

    The bound tightens with K: in expectation it falls monotonically to -log p (Burda et al., arXiv
    1509.00519, theorem 1).
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
    """Estimates the negative evidence bound of each sequence: float64 [B] for each loss term.

    The terms add up to the bound on -log p of the `objective.predicted_tokens` tokens of a
    sequence. For the estimate a sequence is repeated as a global batch of its own: the objective's
    terms share its num_draws rows, t is stratified over them, and each row takes one pass.

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


def _no_keys(order: NDArray[np.int64]) -> SampleKeys:
    """Makes keys for rows whose masks and order are given, for which nothing is drawn."""
    zeros = np.zeros(len(order), np.int64)
    return SampleKeys(0, zeros, zeros, 1)


def _natural_mask(order: NDArray[np.int64], prefix_length: NDArray[np.int64]) -> Mask:
    """Says which tokens come after the prefix of the order, bool [B, L] at natural positions."""
    masked: Mask = np.argsort(order, axis=1) >= prefix_length[:, None]
    return masked


def _weighted_nll(logits: Logits, inputs: NetworkInput, targets: Targets) -> Tensor:
    """Returns the weighted negative log-likelihood of each row, float64 [B].

    The label of a position without weight may be impossible, so such positions are left out.
    """
    log_p = token_log_p(logits, inputs, targets.labels)
    return -torch.where(targets.weights > 0, log_p * targets.weights, 0.0).sum(1)


@torch.no_grad()
def token_log_p(logits: Logits, inputs: NetworkInput, labels: Tensor) -> Tensor:
    """Returns log p of each label, float64 [B, L], on the CPU wherever the network computes."""
    all_logits = logits(inputs)
    labels = labels.to(all_logits.device)
    chosen = all_logits.gather(-1, labels[..., None])[..., 0].double()
    return (chosen - all_logits.logsumexp(-1).double()).cpu()
