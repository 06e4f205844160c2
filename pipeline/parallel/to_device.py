"""The way of a micro-batch to the device that computes with it."""

from typing import TypeAlias

import torch
from torch import Tensor

from esolm.model.columns import note_first_row
from esolm.pipeline.data.micro_batch import MicroBatch

Triple: TypeAlias = tuple[Tensor, Tensor, Tensor]


def on_device(batch: MicroBatch, device: torch.device) -> tuple[Triple, Triple]:
    """Returns the inputs and the targets of a micro-batch."""
    inputs, targets = _all_to_device(batch.inputs, device), _all_to_device(batch.targets, device)
    note_first_row(inputs[2], batch.inputs[2][0].tolist())
    return inputs, targets


def _all_to_device(tensors: Triple, device: torch.device) -> Triple:
    first, second, third = (to_device(tensor, device) for tensor in tensors)
    return first, second, third


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the host on a device; the host does not wait for the copy."""
    if device.type == "cuda":
        # From other memory the copy would not run beside the host, nor if there are gaps in it.
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)
