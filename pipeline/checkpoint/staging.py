"""Host memory that a rank's training states are copied into, while a save writes them."""

from dataclasses import replace

import torch
from torch import Tensor

from esolm.pipeline.parallel.fragments import Fragment


class Staging:
    """One flat buffer for each state, which is made by the first copy and serves all later ones.

    Buffers of a GPU's states are pinned. They are few and large, because torch takes pinned memory
    in powers of two.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, fragments: list[Fragment]) -> list[Fragment]:
        """Returns the same fragments in the buffers; they must have the same sizes every time."""
        total, start, copies = sum(fragment.numel for fragment in fragments), 0, []
        for fragment in fragments:
            states = {
                state: self._buffer(state, total, source)
                .narrow(0, start, fragment.numel)
                .copy_(source)
                for state, source in fragment.states.items()
            }
            copies.append(replace(fragment, states=states))
            start += fragment.numel
        return copies

    def _buffer(self, state: str, total: int, like: Tensor) -> Tensor:
        if state not in self._buffers:
            pinned = like.is_cuda
            self._buffers[state] = torch.empty(total, dtype=like.dtype, pin_memory=pinned)
        return self._buffers[state]
