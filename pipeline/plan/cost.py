"""The machine that the ranks run on, and the share of a step for which a pipeline waits."""

from dataclasses import dataclass

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.run.fp8 import capability_problem, refusal
from esolm.pipeline.run.hardware import PEAK_BF16_FLOPS
from esolm.pipeline.run.sections import TrainSection

HEADROOM = 0.9
"""The share of a GPU's memory that a plan may fill.

The rest is the allowance for the CUDA context, NCCL and fragmentation.
"""


def fits(need: float, memory: float) -> bool:
    """Whether so many bytes by the plan's count fit a GPU of so many."""
    return need <= HEADROOM * memory


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, with figures from the vendor's data sheets."""

    name: str
    peak_flops: float
    """Dense bf16 operations per second."""
    memory: float
    """The memory in bytes."""
    link: float
    """Bytes per second to another GPU of its node, one way."""
    capability: tuple[int, int]


_CAPABILITY = {"A100": (8, 0), "H100": (9, 0), "H200": (9, 0), "B200": (10, 0)}
_MEMORY_GB = {"A100": 80, "H100": 80, "H200": 141, "B200": 180}
_LINK_GB_PER_SECOND = {"A100": 300, "H100": 450, "H200": 450, "B200": 900}


def gpu_named(name: str) -> Gpu:
    """Returns the GPU of a name. Raises ConfigError, which lists the known names, for another."""
    if name not in PEAK_BF16_FLOPS:
        raise ConfigError(f"--gpu is '{name}'; choose {', '.join(PEAK_BF16_FLOPS)}")
    return Gpu(
        name=name,
        peak_flops=PEAK_BF16_FLOPS[name],
        memory=_MEMORY_GB[name] * 1e9,
        link=_LINK_GB_PER_SECOND[name] * 1e9,
        capability=_CAPABILITY[name],
    )


def fp8_misfit(train: TrainSection, gpu: Gpu) -> str | None:
    """Says that a GPU lacks the products in FP8 that a run asks for, if it does."""
    problem = capability_problem(train.fp8, f"the {gpu.name}", gpu.capability)
    return refusal(train.fp8, problem) if problem else None


@dataclass(frozen=True)
class Machine:
    """The machine that the ranks run on."""

    gpu: Gpu
    gpus_per_node: int
    network: float
    """Bytes per second from a GPU to another node, one way."""
    mfu: float
    """The share of the peak that the matrix work reaches."""
    host_memory: float | None = None
    """The host memory of a node in bytes; None if it is not known."""

    def ring_bandwidth(self, members: int, stride: int = 1) -> float:
        """The bytes per second of a ring of `members` ranks that are `stride` apart.

        Between nodes NCCL makes a ring for each member that a node has, every one of which crosses
        on another GPU's link to the network, so that their speeds add up.
        """
        if members * stride <= self.gpus_per_node:
            return self.gpu.link
        beside = max(1, self.gpus_per_node // stride)
        return min(self.gpu.link, beside * self.network)

    def message_bandwidth(self, ranks: int) -> float:
        """The bytes per second of a message between two of `ranks` ranks, at worst."""
        return self.gpu.link if ranks <= self.gpus_per_node else self.network


def bubble_share(layout: Layout, micro_batches: int) -> float:
    """The share of a step in which a stage of 1F1B waits: (p - 1) / (m + p - 1)."""
    return (layout.pp - 1) / (micro_batches + layout.pp - 1)
