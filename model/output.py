"""The output layer: logits over the vocabulary, and the loss of them in pieces.

Shape letters: N rows of hidden states, V the vocabulary of this rank, n the rows of a piece.

Gradients are made together with the loss, piece by piece, so that no more than one piece of logits
is alive at a time and none is computed twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from esolm.model.config import ModelConfig
from esolm.model.numerics import at_least_float32
from esolm.model.pieces import LOGITS_MB, piece_rows
from esolm.model.scoring import LogitRules, LossOfLogits, bounded, exclude, score


@dataclass(frozen=True)
class Scored:
    """The labels [N] and weights [N] of rows, and how many MB (10^6 bytes) a piece may take.

    losses: float32 [N], where each row's weighted loss is written, or None.
    """

    labels: Tensor
    weights: Tensor
    logits_mb: int = LOGITS_MB
    losses: Tensor | None = None


class OutputLayer(nn.Module):
    """Projects hidden states onto the vocabulary, which is split over the tensor-parallel ranks.

    It takes hidden states that sequence parallelism has gathered already. The backward pass of that
    gather sums the ranks' shares of their gradient; without it this layer does.
    """

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.config, ranks = config, parallel.tensor_model_parallel_size
        self.shares_inputs = ranks > 1 and not parallel.sequence_parallel
        size = config.padded_vocab_size(ranks) // ranks
        self.weight = nn.Parameter(torch.zeros(size, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(size)) if config.output_bias else None
        first = parallel_state.get_tensor_model_parallel_rank() * size
        self.rules = LogitRules.of(config, first)

    def forward(self, hidden_ND: Tensor, scored: Scored | None = None) -> Tensor:
        """Returns logits [N, V] in float32 or wider or, given what is scored, the loss of them.

        The logits of ids that are never predicted are -inf. The loss is the sum of weight *
        negative log-likelihood, a float32 scalar in nats; the penalty of `z_loss` adds to its
        gradient alone.
        """
        if self.shares_inputs:
            hidden_ND = copy_to_tensor_model_parallel_region(hidden_ND)
        if scored is None:
            logits = at_least_float32(F.linear(hidden_ND, self.weight, self.bias))
            return exclude(bounded(logits, self.rules), self.rules)
        loss: Tensor = _Loss.apply(  # type: ignore[no-untyped-call]
            hidden_ND, self.weight, self.bias, self, scored, torch.is_grad_enabled()
        )
        return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: OutputLayer,
        scored: Scored,
        differentiate: bool,
    ) -> Tensor:
        nll = torch.empty(len(hidden_ND), device=hidden_ND.device)
        gradients = _Gradients.of(hidden_ND, weight, bias) if differentiate else None
        for part in _pieces(hidden_ND, layer, scored):
            nll[part] = _piece(part, hidden_ND, (weight, bias), layer, scored, gradients)
        if gradients is not None:
            # Saved tensors would be held by two, and then autograd copies gradients of parameters.
            ctx.gradients = [gradients.of_hidden, gradients.of_weight, gradients.of_bias]
        ctx.dtype = weight.dtype
        losses = nll * scored.weights
        if scored.losses is not None:
            scored.losses.copy_(losses)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weight, of_bias = ctx.gradients
        del ctx.gradients
        of_weight = of_weight.mul_(upstream).to(ctx.dtype)
        if of_bias is not None:
            of_bias = of_bias.mul_(upstream).to(ctx.dtype)
        return of_hidden.mul_(upstream), of_weight, of_bias, None, None, None


def _pieces(hidden_ND: Tensor, layer: OutputLayer, scored: Scored) -> Iterator[slice]:
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    rows = piece_rows(layer.config, ranks, hidden_ND.element_size(), scored.logits_mb)
    for first in range(0, len(hidden_ND), rows):
        yield slice(first, first + rows)


@dataclass
class _Gradients:
    """Gradients of the sum of the losses; those of parameters are summed in float32 or wider."""

    hidden_ND: Tensor
    weight: Tensor
    of_hidden: Tensor
    of_weight: Tensor
    of_bias: Tensor | None

    @classmethod
    def of(cls, hidden_ND: Tensor, weight: Tensor, bias: Tensor | None) -> "_Gradients":
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        of_weight = torch.zeros_like(weight, dtype=wide)
        return cls(hidden_ND, weight, torch.empty_like(hidden_ND), of_weight, of_bias)

    def add(self, part: slice, found: LossOfLogits) -> None:
        """Adds what a piece gives."""
        assert found.of_logits is not None
        if self.of_bias is not None and found.of_bias is not None:
            self.of_bias += found.of_bias
        of_logits = found.of_logits.to(self.hidden_ND.dtype)
        torch.mm(of_logits, self.weight, out=self.of_hidden[part])
        if self.of_weight.dtype == of_logits.dtype:
            self.of_weight.addmm_(of_logits.T, self.hidden_ND[part])
        else:
            self.of_weight += of_logits.T @ self.hidden_ND[part]


def _piece(
    part: slice,
    hidden_ND: Tensor,
    parameters: tuple[Tensor, Tensor | None],
    layer: OutputLayer,
    scored: Scored,
    gradients: _Gradients | None,
) -> Tensor:
    """Returns the negative log-likelihood [n]; when it returns, the logits are gone."""
    labels, weights = scored.labels[part], scored.weights[part]
    # No name here holds the logits, which `score` lets go of.
    found = score(
        F.linear(hidden_ND[part], *parameters), labels, weights, layer.rules, gradients is not None
    )
    if gradients is not None:
        gradients.add(part, found)
    return found.nll
