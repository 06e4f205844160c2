"""Tokens per second and model FLOP utilisation."""

import torch

from model import flops
from model.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.train.experiment import build_objective

# Dense bf16 operations per second of one GPU, from the vendor's data sheets.
PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def flops_per_token(config: RunConfig, model: ModelConfig) -> float:
    """Training FLOPs per token of the data (not per token fed; see `model.flops`)."""
    objective, problems = build_objective(config, model.mask_id, bos_id=model.mask_id)
    assert objective is not None, problems
    seq_len = config.train.seq_len
    return flops.flops_per_token(model, objective.work(seq_len), seq_len)


def peak_flops(device: torch.device) -> float | None:
    """bf16 peak of this rank's GPU, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_BF16_FLOPS.items() if key in name), None)
