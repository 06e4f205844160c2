"""Which optional kernels this process uses; said at start-up and in the run's env.json."""

import importlib.util

import torch


def chosen_kernels(device: torch.device) -> dict[str, str]:
    """One line for each choice.

    NVIDIA apex is told from the unrelated package of that name by its multi_tensor_apply module.
    """
    apex = importlib.util.find_spec("apex")
    has_apex = apex is not None and importlib.util.find_spec("apex.multi_tensor_apply") is not None
    flex = "FlexAttention with a block mask; scaled dot product where the pattern is causal"
    dense = "scaled dot product attention, with a dense mask where the pattern is not causal"
    return {
        "attention": flex if device.type == "cuda" else dense,
        "optimizer": "torch fused AdamW + EMA",
        "apex": "found, not needed: torch's fused optimizer is used" if has_apex else "not found",
    }
