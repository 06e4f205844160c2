"""The precision of the few operations that bf16 cannot carry."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x itself if it is float32 or float64, and else its float32 copy."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
