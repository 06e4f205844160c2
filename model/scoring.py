"""The negative log-likelihood of labels under logits, and its gradient, together.

The vocabulary may be split over the tensor-parallel ranks. Shape letters: n rows, V the ids of this
rank. In place the logits become their gradient, one operation after the other. Where pieces are
compiled, each of four reads the logits as the matrix product made them and goes over them once:
nothing as large in float32 is ever written.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from esolm.model.compiling import piece
from esolm.model.config import ModelConfig
from esolm.model.kernels import kernels_in_use
from esolm.model.numerics import at_least_float32


class LogitRules(NamedTuple):
    """What holds for logits: the first id of this rank, ids that are never predicted, the bound.

    limit: from this id on the vocabulary is padded. cap, z_loss: as of `ModelConfig`. has_bias:
    whether something was added to every row, whose gradient is wanted too.
    """

    first: int
    limit: int
    never: tuple[int, ...]
    cap: float
    z_loss: float
    has_bias: bool

    @classmethod
    def of(cls, config: ModelConfig, first: int) -> "LogitRules":
        never = tuple(config.excluded_ids)
        bounds = config.logit_softcap, config.z_loss
        return cls(first, config.vocab_size, never, *bounds, config.output_bias)


class LossOfLogits(NamedTuple):
    """The negative log-likelihood [n]; the gradients of the sum of weight * nll, if asked for.

    of_logits: [n, V]. of_bias: [V], of what is added to every row of logits, float32 or wider.
    """

    nll: Tensor
    of_logits: Tensor | None = None
    of_bias: Tensor | None = None


class Differentiated(NamedTuple):
    """What gradients are made of: logits [n, V], and of each row [n] the largest logit over all
    ranks, what its exp are multiplied by, its label and its weight."""

    logits: Tensor
    largest: Tensor
    scale: Tensor
    labels: Tensor
    weights: Tensor


def score(
    logits: Tensor, labels: Tensor, weights: Tensor, rules: LogitRules, differentiate: bool
) -> LossOfLogits:
    """Scores labels [n], of weights [n], under logits [n, V], which are written over."""
    if not kernels_in_use().compiled:
        wide = at_least_float32(logits)
        del logits  # so that those of bf16 are gone while their copy is worked on
        return _in_place(wide, labels, weights, rules, differentiate)
    largest = over_ranks(largest_of(logits, rules), dist.ReduceOp.MAX)
    sums = over_ranks(sums_of(logits, largest, labels, rules), dist.ReduceOp.SUM)
    label_logits, sum_of_exp = sums.unbind()
    log_sum = sum_of_exp.log()
    nll = log_sum - label_logits
    if not differentiate:
        return LossOfLogits(nll)
    scale = _scale(weights, sum_of_exp, log_sum + largest, rules)
    given = Differentiated(logits, largest, scale, labels, weights)
    return LossOfLogits(nll, gradient_of(given, rules), bias_gradient_of(given, rules))


def bounded(logits: Tensor, rules: LogitRules) -> Tensor:
    """Returns logits under their bound, if they have one."""
    return torch.tanh(logits / rules.cap) * rules.cap if rules.cap else logits


def exclude(logits: Tensor, rules: LogitRules) -> Tensor:
    """Writes over the logits of the mask id and of ids that only pad the vocabulary."""
    padding = slice(max(rules.limit - rules.first, 0), None)
    never = [slice(i - rules.first, i - rules.first + 1) for i in rules.never]
    for ids in (padding, *(part for part in never if part.start >= 0)):
        logits[:, ids] = -torch.inf
    return logits


def _scale(weights: Tensor, sum_of_exp: Tensor, log_z: Tensor, rules: LogitRules) -> Tensor:
    # z_loss * (log Z)^2 makes every probability weigh more.
    return weights / sum_of_exp * (1.0 + 2.0 * rules.z_loss * log_z)


def _in_place(
    logits: Tensor, labels: Tensor, weights: Tensor, rules: LogitRules, differentiate: bool
) -> LossOfLogits:
    tanh = None
    if rules.cap:
        tanh = logits.div_(rules.cap).tanh_()
        tanh = tanh.clone() if differentiate else tanh
        logits.mul_(rules.cap)
    exclude(logits, rules)
    largest = over_ranks(logits.amax(1), dist.ReduceOp.MAX)
    logits.sub_(largest[:, None])
    local = labels - rules.first
    is_here = (local >= 0) & (local < logits.shape[1])
    at_label = torch.arange(len(labels), device=labels.device), local.clamp(0, logits.shape[1] - 1)
    label_logits = logits[at_label].where(is_here, 0.0)
    sums = torch.stack([label_logits, logits.exp_().sum(1)])
    label_logits, sum_of_exp = over_ranks(sums, dist.ReduceOp.SUM).unbind()
    log_sum = sum_of_exp.log()
    if not differentiate:
        return LossOfLogits(log_sum - label_logits)
    logits.mul_(_scale(weights, sum_of_exp, log_sum + largest, rules)[:, None])
    logits[at_label] -= weights * is_here
    if tanh is not None:
        logits.addcmul_(logits, tanh.square_(), value=-1.0)
    # A product reads its rows as they lie; a sum over rows takes five times as long.
    of_bias = logits.new_ones(len(logits)) @ logits if rules.has_bias else None
    return LossOfLogits(log_sum - label_logits, logits, of_bias)


@piece
def largest_of(logits: Tensor, rules: LogitRules) -> Tensor:
    """Returns [n]: the largest logit of each row on this rank."""
    return _seen(logits, rules).amax(1)


@piece
def sums_of(logits: Tensor, largest: Tensor, labels: Tensor, rules: LogitRules) -> Tensor:
    """Returns [2, n]: the labels' logits on the ranks that have them, and the sums of exp."""
    seen = _seen(logits, rules) - largest[:, None]
    is_label = _ids(logits, rules) == labels[:, None]
    return torch.stack([seen.where(is_label, 0.0).sum(1), seen.exp().sum(1)])


@piece
def gradient_of(given: Differentiated, rules: LogitRules) -> Tensor:
    """Returns that of the logits, in their type."""
    return _gradient(given, rules).to(given.logits.dtype)


@piece
def bias_gradient_of(given: Differentiated, rules: LogitRules) -> Tensor | None:
    """Returns that of what is added to every row [V], if something is.

    It computes the gradients once more: to keep them in float32 would take as much as all else.
    """
    return _gradient(given, rules).sum(0) if rules.has_bias else None


def _gradient(given: Differentiated, rules: LogitRules) -> Tensor:
    logits, largest, scale, labels, weights = given
    probability = (_seen(logits, rules) - largest[:, None]).exp() * scale[:, None]
    is_label = _ids(logits, rules) == labels[:, None]
    gradient = probability - weights[:, None].where(is_label, 0.0)
    if rules.cap:
        gradient = gradient - gradient * torch.tanh(at_least_float32(logits) / rules.cap).square()
    return gradient


def _seen(logits: Tensor, rules: LogitRules) -> Tensor:
    """Returns what is predicted from: in float32 or wider, bounded, -inf where never."""
    ids = _ids(logits, rules)
    never = ids >= rules.limit
    for each in rules.never:
        never = never | (ids == each)
    return bounded(at_least_float32(logits), rules).masked_fill(never, -torch.inf)


def _ids(logits: Tensor, rules: LogitRules) -> Tensor:
    return torch.arange(rules.first, rules.first + logits.shape[1], device=logits.device)


def over_ranks(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    """Returns what all tensor-parallel ranks have together; the values are written over."""
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        group = parallel_state.get_tensor_model_parallel_group()
        dist.all_reduce(values, operation, group=group)
    return values
