"""Counts the host memory of a rank that trains on a GPU."""

from dataclasses import dataclass

from esolm.model.config import ModelConfig
from esolm.model.tensors import layer_tensors
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.shapes import Size
from esolm.pipeline.plan.state import ELEMENT_BYTES, StateBytes

STAGED_STATES = 4
"""What an asynchronous save copies of each parameter, in fp32 each."""

PROCESS_BYTES = 500_000_000
"""Allowed for the interpreter and the libraries of a rank; 0.48 GB were seen on a CPU."""

CONTEXT_BYTES = 2_500_000_000
"""Allowed beside them for what CUDA and NCCL keep on the host; not measured."""


@dataclass(frozen=True)
class HostBytes:
    """The bytes of host memory of one rank."""

    process: int
    """The allowance for the interpreter, the libraries, CUDA and NCCL."""
    offloaded: int
    """The optimizer's states under parallel.offload."""
    staging: int
    """The pinned copies of asynchronous saves, which the start reserves at its end."""
    starting: int
    """What a start needs until then: a whole tensor, and under ZeRO-3 this rank's weights."""

    @property
    def peak(self) -> int:
        return self.process + self.offloaded + max(self.staging, self.starting)


def host_bytes(
    model: ModelConfig,
    bounds: tuple[int, int],
    size: Size,
    state: StateBytes,
    layout: Layout,
    precision: str,
    asynchronous: bool,
) -> HostBytes:
    """Returns the host memory of a rank that holds `size` of the pipeline layers `bounds`."""
    share = -(-size.parameters // layout.copies)
    numels = [tensor.numel for layer in range(*bounds) for tensor in layer_tensors(model, layer)]
    partitioned = layout.zero == 3 and layout.needs_deepspeed(offload=state.host > 0)
    regrouped = ELEMENT_BYTES[precision] * share if partitioned else 0
    return HostBytes(
        process=PROCESS_BYTES + CONTEXT_BYTES,
        offloaded=state.host,
        staging=STAGED_STATES * pinned(4 * share) if asynchronous else 0,
        starting=max(4 * max(numels, default=0), regrouped),
    )


def pinned(size: int) -> int:
    """Returns how much torch pins for so many bytes: the next power of two."""
    return 1 << (size - 1).bit_length()
