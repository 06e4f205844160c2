"""A simple model of how long a step takes, which `esolm plan --search` ranks layouts by.

It is an estimate; docs/plan.md states everything that is in it and what is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from esolm.model.config import ModelConfig
from esolm.model.flops import RowWork, layer_costs
from esolm.pipeline.parallel.layout import REDUCE_BUCKET, Layout
from esolm.pipeline.plan.activations import keys_attended
from esolm.pipeline.plan.cost import Machine
from esolm.pipeline.plan.plan import Plan
from esolm.pipeline.plan.state import ELEMENT_BYTES, MAX_GATHERED

LAUNCH_SECONDS = 0.5e-3
"""The least time of a block's forward and backward pass, as its kernels have to be launched."""

KEPT_FOR_BACKWARD = MAX_GATHERED // 2
"""How many elements ZeRO-3 keeps from the forward pass (`stage3_max_reuse_distance`, both ways)."""


@dataclass(frozen=True)
class StepSeconds:
    """The estimated seconds of one optimizer step by cause, of which only `hidden` overlaps."""

    compute: float
    bubble: float
    tensor: float
    """Communication of tensor parallelism."""
    context: float
    """Heads exchanged for tokens among context-parallel ranks."""
    data: float
    """Communication of data parallelism for which the computation waits."""
    hidden: float
    """Communication of data parallelism beside the computation; it is not in the total."""
    messages: float
    """Messages between pipeline stages."""

    @property
    def total(self) -> float:
        waited = self.tensor + self.context + self.data + self.messages
        return self.compute + self.bubble + waited


def step_seconds(plan: Plan, machine: Machine, checkpointing: str) -> StepSeconds:
    """Estimates the seconds of a step under a mode of activation checkpointing."""
    config, model, layout = plan.subject.config, plan.subject.model, plan.layout
    precision, rows = config.train.precision, config.train.micro_batch_size
    works = plan.subject.objective.work(config.train.seq_len)
    repeated = _repeated_share(model, checkpointing)
    one = _micro_batch_seconds(plan, machine, works) * (1 + repeated)
    fed = rows * sum(work.share * work.fed for work in works) / layout.cp
    message = message_seconds(model, layout, machine, precision, fed)
    compute = plan.micro_batches * one
    tokens = plan.micro_batches * fed * (1 + repeated / 2)
    parameters = max(stage.parameters for stage in plan.stages)
    scatters = layout.scatters(precision, config.parallel.offload)
    data = data_seconds(parameters, layout, machine, precision, plan.micro_batches, scatters)
    exposed = exposed_seconds(
        data, compute, layout, machine, parameters, plan.micro_batches, scatters
    )
    return StepSeconds(
        compute=compute,
        bubble=(layout.pp - 1) * (_longest_seconds(plan, machine) * (1 + repeated) + message),
        tensor=tensor_seconds(model, layout, machine, precision, tokens),
        context=context_seconds(model, layout, machine, precision, plan.micro_batches * fed)
        * (1 if checkpointing == "none" else 1.5),
        data=exposed,
        hidden=data - exposed,
        messages=plan.micro_batches * message,
    )


def _micro_batch_seconds(plan: Plan, machine: Machine, works: Sequence[RowWork]) -> float:
    """The seconds that the costliest stage computes for a micro-batch, forward and backward.

    It is one of mean rows of these kinds; nothing is computed twice.
    """
    config, model, layout = plan.subject.config, plan.subject.model, plan.layout
    costs = layer_costs(model, works)
    flops = max(sum(costs[first:end]) for first, end in (s.layers for s in plan.stages))
    blocks = -(-model.num_layers // layout.pp)
    speed = machine.mfu * machine.gpu.peak_flops * layout.tp * layout.cp
    matrices = flops * config.train.micro_batch_size / speed
    return max(matrices, blocks * LAUNCH_SECONDS)


def _longest_seconds(plan: Plan, machine: Machine) -> float:
    """The seconds of a micro-batch of the costliest kind of row."""
    works = plan.subject.objective.work(plan.subject.config.train.seq_len)
    kinds = [[replace(work, share=1.0)] for work in works]
    return max(_micro_batch_seconds(plan, machine, kind) for kind in kinds)


def _repeated_share(model: ModelConfig, mode: str) -> float:
    """The share of all work that checkpointing does twice; the forward pass is a third of all."""
    if mode == "none":
        return 0.0
    if mode == "full":
        return 1 / 3
    matrices = 3 if model.activation == "swiglu" else 2
    attention = 2 * model.hidden_size + 2 * model.kv_size
    return attention / (attention + matrices * model.ffn_hidden_size) / 3


def tensor_seconds(
    model: ModelConfig, layout: Layout, machine: Machine, precision: str, tokens: float
) -> float:
    """The seconds of four ring all-reduces of [tokens, D] per block, forward and backward together.

    tokens: those that a rank holds, but for sequence parallelism.
    With sequence parallelism each is a reduce-scatter and an all-gather of the same volume.
    """
    if layout.tp == 1:
        return 0.0
    volume = ELEMENT_BYTES[precision] * tokens * model.hidden_size
    ring = 2 * (layout.tp - 1) / layout.tp
    blocks = -(-model.num_layers // layout.pp)
    return 4 * blocks * ring * volume / machine.ring_bandwidth(layout.tp)


def exchange_bytes(
    model: ModelConfig, layout: Layout, precision: str, tokens: float, queries: float
) -> float:
    """The bytes that a rank sends in one block to the other context-parallel ranks, both ways.

    Of the tokens that it holds: keys and values of all, and of the queries q and the output; and
    the gradients of these.
    """
    of_tokens, of_queries = keys_attended(model, layout), model.hidden_size // layout.tp
    values = 2 * tokens * of_tokens + 2 * queries * of_queries
    return 2 * ELEMENT_BYTES[precision] * values * (layout.cp - 1) / layout.cp


def context_seconds(
    model: ModelConfig, layout: Layout, machine: Machine, precision: str, tokens: float
) -> float:
    """The seconds of `exchange_bytes` of all blocks of a stage, for `tokens` tokens of a rank.

    Nothing of it overlaps. The last block's, which is less where there are two streams, counts as
    another's.
    """
    blocks = -(-model.num_layers // layout.pp)
    volume = blocks * exchange_bytes(model, layout, precision, tokens, tokens)
    return volume / machine.message_bandwidth(layout.tp * layout.cp)


def message_seconds(
    model: ModelConfig, layout: Layout, machine: Machine, precision: str, tokens: float
) -> float:
    """The seconds that a stage spends on the messages of a micro-batch of `tokens` tokens.

    A stage between two others receives and sends [tokens, D] in the forward pass, and its gradient
    in the backward pass; DeepSpeed's pipeline computes nothing meanwhile.
    """
    if layout.pp == 1:
        return 0.0
    messages = 4 if layout.pp > 2 else 2
    size = ELEMENT_BYTES[precision] * tokens * model.hidden_size
    size /= layout.tp if layout.sequence else 1
    return messages * size / machine.message_bandwidth(layout.world_size)


def data_bytes(
    parameters: int, zero: int, precision: str, micro_batches: int, scatters: bool = False
) -> float:
    """The bytes per step that pass by a rank of a long ring, as DeepSpeed 0.19.8 is configured.

    Gradients travel in fp32. ZeRO-1 sums them once a step by an all-reduce and ZeRO-2 after every
    micro-batch, each of which passes every element twice; both gather the weights once. ZeRO-3
    scatters the sums, and gathers the weights for each forward pass; the backward pass finds those
    that were used last, and gathers the others again. scatters: see `Layout.scatters`.
    """
    weights = ELEMENT_BYTES[precision] * parameters
    if scatters:
        return 4 * parameters + weights
    if zero < 3:
        return 8 * parameters * (1 if zero == 1 else micro_batches) + weights
    again = ELEMENT_BYTES[precision] * max(0, parameters - KEPT_FOR_BACKWARD)
    return micro_batches * (4 * parameters + weights + again)


def data_seconds(
    parameters: int,
    layout: Layout,
    machine: Machine,
    precision: str,
    micro_batches: int,
    scatters: bool = False,
) -> float:
    """The seconds of `data_bytes`, whether computation waits for them or not."""
    if layout.copies == 1:
        return 0.0
    volume = data_bytes(parameters, layout.zero, precision, micro_batches, scatters)
    share = (layout.copies - 1) / layout.copies
    return share * volume / machine.ring_bandwidth(layout.copies, layout.tp)


def exposed_seconds(
    data: float,
    compute: float,
    layout: Layout,
    machine: Machine,
    parameters: int,
    micro_batches: int,
    scatters: bool = False,
) -> float:
    """The part of the `data_seconds` for which the computation waits.

    ZeRO-1 and ZeRO-2 reduce in the stream that computes, but for what ZeRO-1 scatters beside the
    last backward pass, which is two thirds of a micro-batch. ZeRO-3 has streams of its own, which
    the end of every backward pass waits for, with the last bucket of gradients.
    """
    if layout.copies == 1 or (layout.zero < 3 and not scatters):
        return data
    bucket = 4.0 * min(parameters, REDUCE_BUCKET) * (layout.copies - 1) / layout.copies
    last = bucket / machine.ring_bandwidth(layout.copies, layout.tp)
    if scatters:
        gathered = data * ELEMENT_BYTES["bf16"] / (4 + ELEMENT_BYTES["bf16"])
        return gathered + max(data - gathered - compute / micro_batches * 2 / 3, last)
    return max(data - compute, micro_batches * last)
