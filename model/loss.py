"""The weighted cross entropy that every objective is trained with."""

import torch
from torch import Tensor

from esolm.model.network import Head
from esolm.model.output import Scored
from esolm.model.pieces import LOGITS_MB

# (index [N] into the flattened outputs, labels [N], weights [N]); see `Targets.sparse`.
SparseTargets = tuple[Tensor, Tensor, Tensor]


def weighted_loss(
    head: Head,
    hidden_TD: Tensor,
    targets: SparseTargets,
    logits_mb: int = LOGITS_MB,
    by_row: Tensor | None = None,
) -> Tensor:
    """Sums weight * negative log-likelihood over the micro-batch: a float32 scalar in nats.

    hidden_TD: the normalised hidden states [B * Q, D] that the head returns. Only the N positions
    that carry loss go through the output layer. logits_mb: see `esolm.model.output.Scored`.
    by_row: float32 [B], which each row's part of the sum is added to.

    The penalty of `z_loss` has the same weights. It adds to the gradient, but nothing to the value:
    that is the likelihood in every report, whatever the penalty.
    """
    index, labels, weights = targets
    losses = None if by_row is None else torch.empty(len(index), device=hidden_TD.device)
    scored = Scored(labels, weights, logits_mb, losses)
    loss: Tensor = head.output(hidden_TD[index], scored)
    if by_row is not None and losses is not None:
        # Spread out first: adding up by index would have no fixed order on a GPU.
        spread = losses.new_zeros(len(hidden_TD))
        spread[index] = losses
        by_row += spread.view(len(by_row), -1).sum(dim=1)
    return loss
