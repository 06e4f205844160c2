"""What a test that runs on GPUs is marked with: `pytest.param(..., marks=gpus(2))`."""

import pytest
import torch


def gpus(number: int) -> list[pytest.MarkDecorator]:
    """The marker `gpu`, and a reason to skip where so many GPUs are not there."""
    found = torch.cuda.device_count()
    needed = "a GPU" if number == 1 else f"{number} GPUs"
    reason = f"needs {needed}, this machine has {found or 'none'}"
    return [pytest.mark.gpu, pytest.mark.skipif(found < number, reason=reason)]
