"""What the hardware could do at most."""

import re

import torch

# Dense bf16 operations per second of one GPU, from the vendor's data sheets.
PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
# Slower boards and slices of a GPU go by the same names.
NOT_WHOLE = {"PCIe", "NVL", "MIG"}


def peak_flops(device: torch.device) -> float | None:
    """bf16 peak of this rank's GPU, None where it is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """By whole words: an RTX A1000 is no A100."""
    words = set(re.split(r"[\s-]+", name))
    if words & NOT_WHOLE:
        return None
    return next((peak for key, peak in PEAK_BF16_FLOPS.items() if key in words), None)
