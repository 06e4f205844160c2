"""The weighted cross entropy that every objective is trained with."""

from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from model.network import Head

# (index [N] into the flattened outputs, labels [N], weights [N]); see `Targets.sparse`.
SparseTargets = tuple[Tensor, Tensor, Tensor]


def weighted_loss(head: Head, hidden_TD: Tensor, targets: SparseTargets) -> Tensor:
    """Sum over the micro-batch of weight * negative log-likelihood, a float32 scalar in nats.

    hidden_TD: the head's normalised hidden states [B * L, D]. Only the N positions that carry loss
    go through the output layer. The cross entropy is computed over the split vocabulary.
    """
    index, labels, weights = targets
    token_nll = vocab_parallel_cross_entropy(head.logits(hidden_TD[index]), labels)
    loss: Tensor = (token_nll * weights).sum()
    return loss
