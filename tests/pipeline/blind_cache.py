"""A fault of decoding that comparisons with uncached decoding must find."""

from typing import Any

import pytest
import torch

from esolm.pipeline.export.bundle import attention_esolm


def blind_to_the_first_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one slot of what is cached were not seen."""
    original = attention_esolm.Sight.mask

    def short(sight: Any, first: int, last: int, end: int, device: Any) -> torch.Tensor | None:
        mask = original(sight, first, last, end, device)
        if mask is None or not first:
            return mask
        return mask & (torch.arange(end) > 0)

    monkeypatch.setattr(attention_esolm.Sight, "mask", short)
