# mypy: ignore-errors
"""From the host to where the network is."""

import numpy as np
import torch
from torch import Tensor


def in_one_copy(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays, int64 or float64, as tensors on the device; nothing waits until they are there.

    Small copies cost a GPU as much as one that has them all, and only those from pinned memory do
    not stop the host.
    """
    packed = torch.from_numpy(np.concatenate([each.reshape(-1).view(np.int64) for each in arrays]))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = packed.to(device, non_blocking=True).split([each.size for each in arrays])
    return [
        part.view(torch.float64 if each.dtype == np.float64 else torch.int64).view(each.shape)
        for part, each in zip(parts, arrays, strict=True)
    ]
