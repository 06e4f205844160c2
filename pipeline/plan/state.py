"""Counts what a rank holds of weights, gradients and optimizer, as its engine lays them out.

That is DeepSpeed 0.19 but in a run of one process.

The figures are measured, not derived: docs/plan.md has the table, and tests/pipeline/plan compares
them with a running engine. Letters there: N is the number of parameters of the rank, d the number
of ranks that hold the same weights, e the bytes of a weight (2 or 4).
"""

from dataclasses import dataclass

from esolm.pipeline.parallel.layout import REDUCE_BUCKET, Layout
from esolm.pipeline.plan.shapes import Size

MAX_GATHERED = 1_000_000_000
"""How many elements ZeRO-3 keeps gathered at a time (`stage3_max_live_parameters`)."""

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class StateBytes:
    """The bytes of the state on one rank."""

    weights: int
    gradients: int
    """The bytes of the gradients while they are accumulated."""
    master: int
    """The fp32 weights that the optimizer updates."""
    moments: int
    ema: int
    bucket: int
    """DeepSpeed's fixed reduction buffers, which exist from a step's first backward pass on."""
    computing: int
    """What the network's computing adds: the gathered weights of ZeRO-3, a fresh gradient."""
    reducing: int
    """What reducing gradients and preparing the update adds, in place of `computing`."""
    host: int = 0
    """The bytes that parallel.offload puts into host memory instead."""

    @property
    def held(self) -> int:
        """The bytes of weights, gradients, optimizer and average together."""
        return self.weights + self.gradients + self.master + self.moments + self.ema

    def peak(self, activations: int = 0) -> int:
        """The most bytes at any moment of a step. activations: how many of them are activations."""
        return self.held + self.bucket + max(self.computing + activations, self.reducing)


def state_bytes(size: Size, layout: Layout, precision: str, offload: bool = False) -> StateBytes:
    """Returns the state of a rank that holds `size` of the network."""
    element = ELEMENT_BYTES[precision]
    if not layout.needs_deepspeed(offload):
        state = _one_process(size, element)
    elif layout.zero == 3:
        state = _stage_3(size, layout.copies, element)
    elif layout.scatters(precision, offload):
        state = _bf16_stage_1(size, layout.copies)
    elif layout.zero == 1:
        state = _stage_1(size, layout, element)
    else:
        state = _stage_2(size, layout.copies, element)
    return _offloaded(state, size, layout.copies) if offload else state


def _one_process(size: Size, element: int) -> StateBytes:
    """In fp32 the optimizer updates the very weights that the network computes with."""
    count = size.parameters
    return StateBytes(
        weights=element * count,
        gradients=4 * count,
        master=4 * count if element == 2 else 0,
        moments=8 * count,
        ema=4 * count,
        bucket=0,
        computing=element * size.largest,
        reducing=0,
    )


def _bf16_stage_1(size: Size, dp: int) -> StateBytes:
    """BF16_Optimizer keeps a whole fp32 gradient on every rank, which is reduced in place."""
    count, share = size.parameters, -(-size.parameters // dp)
    return StateBytes(
        weights=2 * count,
        gradients=4 * count,
        master=4 * share,
        moments=8 * share,
        ema=4 * share,
        bucket=0,
        computing=2 * size.largest,
        reducing=0,
    )


def _stage_1(size: Size, layout: Layout, element: int) -> StateBytes:
    """Gradients accumulate whole, and the update flattens a rank's share of them twice."""
    count, share = size.parameters, -(-size.parameters // layout.copies)
    bucket = 4 * REDUCE_BUCKET * (2 if layout.pp > 1 else 1)
    fresh = 0 if layout.pp > 1 else 4 * size.largest
    return StateBytes(
        weights=element * count,
        gradients=4 * count,
        master=4 * share,
        moments=8 * share,
        ema=4 * share,
        bucket=bucket,
        computing=fresh,
        reducing=fresh + max(0, 8 * share - 4 * count - bucket),
    )


def _stage_2(size: Size, dp: int, element: int) -> StateBytes:
    """Only a rank's share of the gradients stays; a bucket is copied to be reduced in fp32."""
    count, share = size.parameters, -(-size.parameters // dp)
    bucketed = max(min(count, REDUCE_BUCKET), size.largest)
    return StateBytes(
        weights=element * count,
        gradients=4 * share,
        master=4 * share,
        moments=8 * share,
        ema=4 * share,
        bucket=element * REDUCE_BUCKET,
        computing=element * size.largest,
        reducing=(6 if element == 2 else 4) * bucketed,
    )


def _stage_3(size: Size, dp: int, element: int) -> StateBytes:
    """All is shared out, small parameters are also kept whole, layers are gathered to compute."""
    count, share = size.parameters, -(-size.parameters // dp)
    persistent = size.persistent if dp > 1 else 0
    bucketed = max(min(count, REDUCE_BUCKET), size.largest)
    left = element * min(count - bucketed, MAX_GATHERED)
    widened = 4 * bucketed if element == 2 else 0
    scattered = element * (2 * bucketed + size.largest) + widened if dp > 1 else 0
    return StateBytes(
        weights=element * (share + persistent),
        gradients=4 * share,
        master=4 * share,
        moments=8 * share,
        ema=4 * share,
        bucket=4 * REDUCE_BUCKET,
        computing=element * min(count - persistent, MAX_GATHERED) if dp > 1 else 0,
        reducing=left + max(scattered, 4 * bucketed + 4 * share),
    )


def _offloaded(state: StateBytes, size: Size, dp: int) -> StateBytes:
    share = -(-size.parameters // dp)
    host = state.master + state.moments + state.ema + 4 * share
    return StateBytes(
        weights=state.weights,
        gradients=state.gradients,
        master=0,
        moments=0,
        ema=0,
        bucket=state.bucket,
        computing=state.computing,
        reducing=state.reducing,
        host=host,
    )
