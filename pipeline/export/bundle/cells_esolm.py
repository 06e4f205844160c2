# mypy: ignore-errors
"""What a batch keeps where the network is, and the network's pass over it."""

from typing import Any

import torch
from torch import Tensor

from .attention_esolm import CachedRows, Group, SlotCache
from .rectangle_esolm import Rectangle, Shape


class Cells:
    """Tokens and positions, int64 [rows * slots], and the cache of their keys and values."""

    def __init__(self, network: Any, rows: int, slots: int) -> None:
        self._network, device = network, network.device
        self.tokens = torch.full((rows * slots,), network.config.mask_token_id, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.cache = SlotCache(network.config, rows, slots, network.dtype, device)

    def in_groups(self, groups: list[Group], count: int, fed: Tensor) -> Tensor:
        """Hidden states [count, D] of what is wanted; fed: as `Pass.in_a_row` gives it."""
        num_tokens = (len(fed) - count) // 2
        cells, told, wanted = fed.split([num_tokens, num_tokens, count])
        return self._decoded(cells, told, wanted, CachedRows(self.cache, groups))

    def in_rectangle(self, shape: Shape, fed: Tensor) -> Tensor:
        """Hidden states [shape.wanted, D]; fed: as `laid_out` gives it. Again: the same."""
        cells, told, slots, reach, wanted = shape.parts(fed)
        return self._decoded(cells, told, wanted, Rectangle(self.cache, shape, slots, reach))

    def _decoded(
        self, cells: Tensor, told: Tensor, wanted: Tensor, attend: CachedRows | Rectangle
    ) -> Tensor:
        tokens = torch.where(told < 0, self.tokens[cells], told)
        return self._network.model.decode(tokens, self.positions[cells], attend, wanted)
