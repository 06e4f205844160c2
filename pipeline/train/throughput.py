"""Tokens per second and model FLOP utilisation."""

import torch

from model.attention import AttentionPattern
from model.config import ModelConfig
from model.flops import row_flops
from pipeline.config import RunConfig

# Dense bf16 operations per second of one GPU, from the vendor's data sheets.
PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def flops_per_token(config: RunConfig, model: ModelConfig) -> float:
    """Training FLOPs per token of the data (not per token fed; see `model.flops`)."""
    length, objective = config.train.seq_len, config.objective
    if objective.name == "ar":
        return row_flops(model, AttentionPattern.CAUSAL, length, length) / length
    # Mean share of masked tokens: of z_t over t, and of z_0.
    masked_t, masked_0 = 1.0 - 0.5 * objective.alpha_0, 1.0 - objective.alpha_0
    diffusion = row_flops(model, AttentionPattern.CAUSAL, length, masked_t * length)
    sequential = row_flops(model, AttentionPattern.TWO_STREAM, length, masked_0 * length)
    return (objective.kappa * diffusion + (1.0 - objective.kappa) * sequential) / length


def peak_flops(device: torch.device) -> float | None:
    """bf16 peak of this rank's GPU, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_BF16_FLOPS.items() if key in name), None)
