"""The weighted cross entropy that every objective is trained with."""

from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from esolm.model.network import Head

# (index [N] into the flattened outputs, labels [N], weights [N]); see `Targets.sparse`.
SparseTargets = tuple[Tensor, Tensor, Tensor]


def weighted_loss(head: Head, hidden_TD: Tensor, targets: SparseTargets) -> Tensor:
    """Sums weight * negative log-likelihood over the micro-batch: a float32 scalar in nats.

    hidden_TD: the normalised hidden states [B * L, D] that the head returns. Only the N positions
    that carry loss go through the output layer. The cross entropy is computed over the vocabulary
    as it is split over the ranks.
    """
    index, labels, weights = targets
    token_nll = vocab_parallel_cross_entropy(head.logits(hidden_TD[index]), labels)
    loss: Tensor = (token_nll * weights).sum()
    return loss
