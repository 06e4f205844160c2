"""What the hardware can do at most."""

import re

import torch

# Dense bf16 operations per second of one GPU, from the vendor's data sheets.
PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
# Slower boards and slices of a GPU have the same names, with one of these words beside them.
NOT_WHOLE = {"PCIe", "NVL", "MIG"}


def peak_flops(device: torch.device) -> float | None:
    """Returns the bf16 peak of this rank's GPU in operations per second, or None if unknown."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Finds the peak by whole words of a GPU's name: an RTX A1000 is no A100."""
    words = set(re.split(r"[\s-]+", name))
    if words & NOT_WHOLE:
        return None
    return next((peak for key, peak in PEAK_BF16_FLOPS.items() if key in words), None)
