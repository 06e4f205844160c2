"""Activation checkpointing: the backward pass computes again what was not kept."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from esolm.model.layers import Attention
from esolm.model.network import Block


def set_recompute(module: nn.Module, mode: str) -> None:
    """Sets what the blocks in a module compute again; call it before any parallel wrapper.

    mode: `none` keeps everything; `selective` computes the attention of each block again; `full`
    computes whole blocks again.
    """
    recomputed = {"none": (), "selective": (Attention,), "full": (Block,)}[mode]
    for part in module.modules():
        if isinstance(part, recomputed):
            part.forward = _recomputed(part.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    # Dropout is keyed by the data, so there is no generator state to restore.
    def run(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    return run
