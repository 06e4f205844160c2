"""Checks that stop bad numbers before they spoil a run."""

import logging
import math
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from esolm.pipeline.errors import EsolmError
from esolm.pipeline.parallel.copies import copies_group
from esolm.pipeline.parallel.engine import Engine, StepResult

logger = logging.getLogger(__name__)

CHUNK = 1 << 22
"""Elements of a weight that the comparison of replicas takes at a time: 128 MB of temporaries."""


class SpikeGuard:
    """Compares the loss and the gradient norm of a step with those of the steps before it.

    A step is a spike if its loss or its norm lies more than `sigmas` standard deviations above the
    mean of the last `window` accepted steps. Every rank sees the same figures, so all ranks reach
    the same verdict.

    measured: the settings that the figures depend on and that a resume may change, such as the
    batch size. After such a change the old figures would make every new step a spike, and no step
    would ever be accepted to correct them; so the guard forgets them. defaults: what older
    checkpoints, which do not name all of these settings, were trained with.
    """

    def __init__(
        self,
        window: int,
        sigmas: float,
        measured: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        self.window, self.sigmas, self.measured = window, sigmas, measured or {}
        self.defaults = defaults or {}
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)

    def state(self) -> dict[str, Any]:
        """The figures that the next step is compared with, so that a restart changes no verdict."""
        figures = {"losses": list(self._losses), "norms": list(self._norms)}
        return {**figures, "measured": self.measured}

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back the figures of `state`, or none if they were measured under other settings.

        Older checkpoints hold no figures, or do not say how they were measured.
        """
        if self.defaults | state.get("measured", self.measured) != self.measured:
            logger.info(
                "batch size, objective or context differ: the spike guard forgets its figures"
            )
            state = {}
        self._losses = deque(state.get("losses", []), maxlen=self.window)
        self._norms = deque(state.get("norms", []), maxlen=self.window)

    def measure_under(self, **settings: Any) -> None:
        """Takes over settings that change within a run; where one does, the figures are forgotten.

        They would make every step a spike, as after a resume that changes one.
        """
        measured = self.measured | settings
        if measured != self.measured:
            self._losses.clear()
            self._norms.clear()
        self.measured = measured

    def judge(self, result: StepResult) -> bool:
        """Says whether the step may be applied, and remembers its figures if so."""
        if self.reason(result) is not None:
            return False
        self._losses.append(result.loss)
        self._norms.append(result.grad_norm)
        return True

    def reason(self, result: StepResult) -> str | None:
        """Says why the step must not be applied; None if it may be."""
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
    """Ends a run that makes no progress: one with `limit` refused steps since it last got further.

    A refused step is one that was not applied, whether or not the run was rolled back for it. A
    step that is repeated after a rollback is no progress.
    """

    def __init__(self, limit: int, step: int) -> None:
        self.limit, self._furthest, self._refused = limit, step, 0

    def note(self, step: int, applied: bool) -> None:
        """Counts a step. Raises EsolmError at the limit, on every rank alike."""
        if applied and step > self._furthest:
            self._furthest, self._refused = step, 0
        elif not applied:
            self._refused += 1
        if self._refused >= self.limit:
            raise EsolmError(
                f"{self._refused} steps were refused since step {self._furthest}, the last that "
                "got the run any further (train.max_refused_steps). incidents.jsonl and the log "
                "say why. If losses or gradients are not finite, resume with a smaller "
                "optimizer.lr, from an older checkpoint if need be. If the figures are sound and "
                "only higher than before, resume with train.spike_sigmas=0."
            )


def check_replicas(engine: Engine) -> None:
    """Compares the weights that several ranks hold alike, bit by bit; collective over all ranks.

    Under pipeline parallelism the two copies of tied embeddings are not compared. They differ by
    rounding, because the order in which replicas are summed depends on what else a stage holds.

    Raises EsolmError, which names the parameters that differ.
    """
    copies = list(engine.replicas())
    if not copies:  # of one rank, or of an engine whose ranks hold nothing alike
        return
    mine = torch.stack([_bit_sum(copy.held) for copy in copies])
    found = set()
    for group, members in (
        (copies_group(), [copy.over_data for copy in copies]),
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
    """Returns a 64-bit sum over the bit patterns, each weighted by its place.

    It goes through the tensor in chunks, because the temporaries take 32 bytes an element.
    """
    bits = tensor.detach().contiguous().view(-1)
    bits = bits.view(torch.int16 if bits.element_size() == 2 else torch.int32)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), CHUNK):
        chunk = bits[start : start + CHUNK].to(torch.int64)
        place = torch.arange(start, start + chunk.numel(), device=bits.device)
        total += (chunk * (2 * place + 1)).sum()
    return total


def _differs(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    low, high = values.clone(), values.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    return low != high
