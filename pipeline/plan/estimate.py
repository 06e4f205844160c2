"""A simple model of how long a step takes, which `esolm plan --search` ranks layouts by.

It is an estimate; docs/plan.md states everything that is in it and what is not.
"""

from dataclasses import dataclass

from esolm.model.config import ModelConfig
from esolm.model.flops import layer_costs
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.cost import Machine
from esolm.pipeline.plan.plan import Plan
from esolm.pipeline.plan.state import ELEMENT_BYTES

LAUNCH_SECONDS = 0.5e-3
"""The least time of a block's forward and backward pass, as its kernels have to be launched."""


@dataclass(frozen=True)
class StepSeconds:
    """The estimated seconds of one optimizer step by cause, none of which overlap."""

    compute: float
    bubble: float
    tensor: float
    """Communication of tensor parallelism."""
    data: float
    """Communication of data parallelism."""

    @property
    def total(self) -> float:
        return self.compute + self.bubble + self.tensor + self.data


def step_seconds(plan: Plan, machine: Machine, checkpointing: str) -> StepSeconds:
    """Estimates the seconds of a step under a mode of activation checkpointing."""
    config, model, layout = plan.subject.config, plan.subject.model, plan.layout
    works = plan.subject.objective.work(config.train.seq_len)
    costs = layer_costs(model, works)
    rows = config.train.micro_batch_size
    stage_flops = max(sum(costs[first:end]) for first, end in (s.layers for s in plan.stages))
    blocks = -(-model.num_layers // layout.pp)
    speed = machine.mfu * machine.gpu.peak_flops * layout.tp
    repeated = _repeated_share(model, checkpointing)
    one = max(stage_flops * rows * (1 + repeated) / speed, blocks * LAUNCH_SECONDS * (1 + repeated))
    compute = plan.micro_batches * one
    fed = sum(work.share * work.pattern.num_streams * work.length for work in works)
    tokens = plan.micro_batches * rows * fed * (1 + repeated / 2)
    parameters = max(stage.parameters for stage in plan.stages)
    return StepSeconds(
        compute=compute,
        bubble=(layout.pp - 1) * one,
        tensor=tensor_seconds(model, layout, machine, config.train.precision, tokens),
        data=data_seconds(parameters, layout, machine, config.train.precision, plan.micro_batches),
    )


def _repeated_share(model: ModelConfig, mode: str) -> float:
    """The share of all work that checkpointing does twice; the forward pass is a third of all."""
    if mode == "none":
        return 0.0
    if mode == "full":
        return 1 / 3
    matrices = 3 if model.activation == "swiglu" else 2
    attention = 4 * model.hidden_size
    return attention / (attention + matrices * model.ffn_hidden_size) / 3


def tensor_seconds(
    model: ModelConfig, layout: Layout, machine: Machine, precision: str, tokens: float
) -> float:
    """The seconds of four ring all-reduces of [tokens, D] per block, forward and backward together.

    With sequence parallelism each is a reduce-scatter and an all-gather of the same volume.
    """
    if layout.tp == 1:
        return 0.0
    volume = ELEMENT_BYTES[precision] * tokens * model.hidden_size
    ring = 2 * (layout.tp - 1) / layout.tp
    blocks = -(-model.num_layers // layout.pp)
    return 4 * blocks * ring * volume / machine.bandwidth(layout.tp)


def data_seconds(
    parameters: int, layout: Layout, machine: Machine, precision: str, micro_batches: int
) -> float:
    """The seconds to reduce the gradients and gather the weights of a rank, by ring algorithms.

    ZeRO-2 and ZeRO-3 reduce after every micro-batch; ZeRO-3 gathers for each forward pass and for
    each backward pass.
    """
    if layout.dp == 1:
        return 0.0
    share = (layout.dp - 1) / layout.dp
    volume = ELEMENT_BYTES[precision] * parameters * share
    moved = {1: 3.0, 2: 2.0 * micro_batches + 1.0, 3: 3.0 * micro_batches}[layout.zero]
    return moved * volume / machine.bandwidth(layout.tp * layout.dp)
