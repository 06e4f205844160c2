"""The weighted cross entropy that every objective is trained with."""

from torch import Tensor

from esolm.model.network import Head
from esolm.model.output import Scored
from esolm.model.pieces import LOGITS_MB

# (index [N] into the flattened outputs, labels [N], weights [N]); see `Targets.sparse`.
SparseTargets = tuple[Tensor, Tensor, Tensor]


def weighted_loss(
    head: Head, hidden_TD: Tensor, targets: SparseTargets, logits_mb: int = LOGITS_MB
) -> Tensor:
    """Sums weight * negative log-likelihood over the micro-batch: a float32 scalar in nats.

    hidden_TD: the normalised hidden states [B * Q, D] that the head returns. Only the N positions
    that carry loss go through the output layer. logits_mb: see `esolm.model.output.Scored`.

    The penalty of `z_loss` has the same weights. It adds to the gradient, but nothing to the value:
    that is the likelihood in every report, whatever the penalty.
    """
    index, labels, weights = targets
    loss: Tensor = head.output(hidden_TD[index], Scored(labels, weights, logits_mb))
    return loss
