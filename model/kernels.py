"""Which of several kernels that compute the same thing this process uses.

PyTorch's plain ones serve everywhere. A run proves the others on its device before it takes them
(`esolm.pipeline.train.kernels`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernels:
    """The kernels that are used where the device has them."""

    flex_attention: bool = True
    """On CUDA, a block mask where the pattern is not causal; else a dense mask."""
    two_streams: bool = True
    """On the CPU, two streams whose noised tokens are apart as causal passes that are merged."""
    fused_adamw: bool = True
    """One kernel for the whole update; else one for each of its operations."""
    apex_norm: bool = False
    """NVIDIA apex's LayerNorm and RMSNorm; else PyTorch's."""
    compiled: str = ""
    """The backend of torch.compile that makes the pieces of `esolm.model.compiling`; else none."""


_in_use = Kernels()


def kernels_in_use() -> Kernels:
    """Returns the choice that holds in this process."""
    return _in_use


def use_kernels(kernels: Kernels) -> None:
    """Makes a choice hold from now on: an optimizer keeps the one that it was built under."""
    global _in_use
    _in_use = kernels
