"""Guards against numbers that would spoil a run."""

import logging
import math
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from pipeline.errors import EsolmError
from pipeline.parallel.engine import Engine, StepResult

logger = logging.getLogger(__name__)


class SpikeGuard:
    """Judges a step by the loss and the gradient norm of the steps before it.

    A step is a spike where either lies more than `sigmas` standard deviations above the mean of the
    last `window` accepted steps. Every rank sees the same figures and comes to the same verdict.

    measured: what the figures depend on and a resume may change. Steps of another kind say nothing
    about those to come, which would all be spikes, and never learnt from.
    """

    def __init__(self, window: int, sigmas: float, measured: dict[str, Any] | None = None) -> None:
        self.window, self.sigmas, self.measured = window, sigmas, measured or {}
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)

    def state(self) -> dict[str, Any]:
        """The steps that the next one is judged by; a restart must not change the verdict."""
        figures = {"losses": list(self._losses), "norms": list(self._norms)}
        return {**figures, "measured": self.measured}

    def restore(self, state: dict[str, Any]) -> None:
        """As it was when `state` was asked for; without any step where that is of another kind.

        Older checkpoints do not say what their steps were measured on, or hold none.
        """
        if state.get("measured", self.measured) != self.measured:
            logger.info("batch size or objective differ: the spike guard begins with no step")
            state = {}
        self._losses = deque(state.get("losses", []), maxlen=self.window)
        self._norms = deque(state.get("norms", []), maxlen=self.window)

    def judge(self, result: StepResult) -> bool:
        """Whether the step may be applied; if so, it counts for those after it."""
        if self.reason(result) is not None:
            return False
        self._losses.append(result.loss)
        self._norms.append(result.grad_norm)
        return True

    def reason(self, result: StepResult) -> str | None:
        """Why the step is not to be applied, None if it is sound."""
        for name, value, history in (
            ("loss", result.loss, self._losses),
            ("gradient norm", result.grad_norm, self._norms),
        ):
            if not math.isfinite(value):
                return f"the {name} is {value}"
            if self.sigmas > 0 and len(history) == self.window:
                mean = sum(history) / self.window
                deviation = math.sqrt(sum((x - mean) ** 2 for x in history) / self.window)
                if value > mean + self.sigmas * deviation:
                    return (
                        f"the {name} {value:.4g} is more than {self.sigmas:g} standard deviations "
                        f"({deviation:.4g}) above its mean of {mean:.4g} over {self.window} steps"
                    )
        return None


class Standstill:
    """Ends a run that gets no further: `limit` refusals since the last new update.

    A refusal is a step that was not applied, whether or not the run was rolled back for it. Steps
    that are taken again after a rollback are nothing new.
    """

    def __init__(self, limit: int, step: int) -> None:
        self.limit, self._furthest, self._refused = limit, step, 0

    def note(self, step: int, applied: bool) -> None:
        """Raises EsolmError at the limit, the same on every rank."""
        if applied and step > self._furthest:
            self._furthest, self._refused = step, 0
        elif not applied:
            self._refused += 1
        if self._refused >= self.limit:
            raise EsolmError(
                f"{self._refused} steps were refused since step {self._furthest}, the last that "
                "got the run any further (train.max_refused_steps). incidents.jsonl and the log "
                "say why. If losses or gradients are not finite, resume with a smaller "
                "optimizer.lr, from an older checkpoint if need be; if the figures are sound and "
                "only higher than before, with train.spike_sigmas=0."
            )


def check_replicas(engine: Engine) -> None:
    """Compares what ranks hold in common, bit by bit; collective over all ranks.

    The two copies of tied embeddings under pipeline parallelism differ by rounding: replicas are
    summed in an order that depends on what else a stage holds. They are not compared.

    Raises EsolmError naming the parameters that differ.
    """
    copies = list(engine.replicas())
    mine = torch.stack([_bit_sum(copy.held) for copy in copies])
    found = set()
    for group, members in (
        (parallel_state.get_data_parallel_group(), [copy.over_data for copy in copies]),
        (parallel_state.get_tensor_model_parallel_group(), [copy.over_tensor for copy in copies]),
    ):
        differ = _differs(mine, group) & torch.tensor(members, device=mine.device)
        found |= {copy.name for copy, wrong in zip(copies, differ.tolist(), strict=True) if wrong}
    flag = torch.tensor([len(found)], device=mine.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if flag.item():
        shown = ", ".join(sorted(found)[:5]) if found else "see the logs of the other ranks"
        raise EsolmError(
            f"weights that must be equal on several ranks differ ({shown}): a memory error or a "
            "faulty link. Resume from the last checkpoint, on other nodes if it comes again."
        )


def _bit_sum(tensor: Tensor) -> Tensor:
    """A 64-bit sum over the bit patterns, each weighted by its place."""
    bits = tensor.detach().contiguous().view(-1)
    bits = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32).to(torch.int64)
    return (bits * (2 * torch.arange(bits.numel(), device=bits.device) + 1)).sum()


def _differs(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    low, high = values.clone(), values.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    return low != high
