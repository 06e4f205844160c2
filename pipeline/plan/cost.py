"""A simple model of how long a step takes; every number of it is stated in docs/plan.md."""

from dataclasses import dataclass

from model.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.parallel.layout import Layout
from pipeline.plan.state import ELEMENT_BYTES
from pipeline.train.hardware import PEAK_BF16_FLOPS

LAUNCH_SECONDS = 0.5e-3
"""Least time of a block's forward and backward pass: its kernels have to be launched."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, from the vendor's data sheets."""

    name: str
    peak_flops: float
    """Dense bf16 operations per second."""
    memory: float
    """Bytes."""
    link: float
    """Bytes per second to another GPU of its node, one way."""


_MEMORY_GB = {"A100": 80, "H100": 80, "H200": 141, "B200": 180}
_LINK_GB_PER_SECOND = {"A100": 300, "H100": 450, "H200": 450, "B200": 900}


def gpu_named(name: str) -> Gpu:
    """Raises ConfigError with the known names."""
    if name not in PEAK_BF16_FLOPS:
        raise ConfigError(f"--gpu is '{name}'; choose {', '.join(PEAK_BF16_FLOPS)}")
    return Gpu(name, PEAK_BF16_FLOPS[name], _MEMORY_GB[name] * 1e9, _LINK_GB_PER_SECOND[name] * 1e9)


@dataclass(frozen=True)
class Machine:
    """What the ranks run on."""

    gpu: Gpu
    gpus_per_node: int
    network: float
    """Bytes per second of a GPU to another node, one way."""
    mfu: float
    """Share of the peak that the matrix work reaches."""

    def bandwidth(self, span: int) -> float:
        """Of a group whose ranks lie within `span` consecutive ones."""
        return self.gpu.link if span <= self.gpus_per_node else self.network


@dataclass(frozen=True)
class StepSeconds:
    """Estimated seconds of one optimizer step by cause; none of them overlap."""

    compute: float
    bubble: float
    tensor: float
    """Communication of tensor parallelism."""
    data: float
    """Communication of data parallelism."""

    @property
    def total(self) -> float:
        return self.compute + self.bubble + self.tensor + self.data


def bubble_share(layout: Layout, micro_batches: int) -> float:
    """Share of a step in which a stage of 1F1B waits: (p - 1) / (m + p - 1)."""
    return (layout.pp - 1) / (micro_batches + layout.pp - 1)


def tensor_seconds(
    model: ModelConfig, layout: Layout, machine: Machine, precision: str, tokens: float
) -> float:
    """Four ring all-reduces of [tokens, D] per block, forward and backward together.

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
    """Reducing gradients and gathering weights, ring algorithms, over a rank's parameters.

    ZeRO-2 and 3 reduce after every micro-batch; ZeRO-3 gathers for each forward and backward.
    """
    if layout.dp == 1:
        return 0.0
    share = (layout.dp - 1) / layout.dp
    volume = ELEMENT_BYTES[precision] * parameters * share
    moved = {1: 3.0, 2: 2.0 * micro_batches + 1.0, 3: 3.0 * micro_batches}[layout.zero]
    return moved * volume / machine.bandwidth(layout.tp * layout.dp)
