"""The weighted cross entropy that every objective is trained with."""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    reduce_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor

from esolm.model.network import Head

# (index [N] into the flattened outputs, labels [N], weights [N]); see `Targets.sparse`.
SparseTargets = tuple[Tensor, Tensor, Tensor]


def weighted_loss(
    head: Head, hidden_TD: Tensor, targets: SparseTargets, by_row: Tensor | None = None
) -> Tensor:
    """Sums weight * negative log-likelihood over the micro-batch: a float32 scalar in nats.

    hidden_TD: the normalised hidden states [B * L, D] that the head returns. Only the N positions
    that carry loss go through the output layer. The cross entropy is computed over the vocabulary
    as it is split over the ranks. by_row: float32 [B], which each row's part is added to.

    The penalty of `z_loss` has the same weights. It adds to the gradient, but nothing to the value:
    that is the likelihood in every report, whatever the penalty.
    """
    index, labels, weights = targets
    logits = head.logits(hidden_TD[index])
    z_loss = head.config.z_loss if torch.is_grad_enabled() else 0.0
    # The cross entropy writes over the logits, which nothing here may need for its backward pass.
    label_logits = _logits_of(labels, logits) if z_loss else None
    token_nll = vocab_parallel_cross_entropy(logits, labels)
    token_losses = token_nll * weights
    if by_row is not None:
        # Spread out first: adding up by index would have no fixed order on a GPU.
        spread = token_losses.new_zeros(len(hidden_TD))
        spread[index] = token_losses.detach()
        by_row += spread.view(len(by_row), -1).sum(dim=1)
    loss: Tensor = token_losses.sum()
    if label_logits is not None:
        penalty = z_loss * ((token_nll + label_logits).square() * weights).sum()
        loss = loss + (penalty - penalty.detach())
    return loss


def _logits_of(labels: Tensor, logits: Tensor) -> Tensor:
    """Returns the logit [N] of each label; logits: [N, V of this rank]."""
    size = logits.shape[-1]
    local = labels - parallel_state.get_tensor_model_parallel_rank() * size
    is_here = (local >= 0) & (local < size)
    rows = torch.arange(len(labels), device=labels.device)
    found = logits[rows, local.clamp(0, size - 1)]
    everywhere: Tensor = reduce_from_tensor_model_parallel_region(found.where(is_here, 0.0))
    return everywhere.float()
