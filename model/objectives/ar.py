"""The autoregressive baseline: predict each token from those before it, left to right."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.attention import AttentionPattern
from model.flops import RowWork
from model.inputs import NetworkInput, Targets
from model.objectives.base import SEQUENTIAL
from model.objectives.draws import SampleKeys


@dataclass(frozen=True)
class AutoRegressive:
    """prepend_id: the token put before the sequence (bos or mask), or None.

    With None the first token is not predicted and a row carries L - 1 losses.
    """

    prepend_id: int | None = None

    def problems(self, seq_len: int) -> list[str]:
        return []

    def predicted_tokens(self, seq_len: int) -> int:
        return seq_len - (self.prepend_id is None)

    def terms(self, global_batch_size: int) -> dict[str, range]:
        return {SEQUENTIAL: range(global_batch_size)}

    def times(self, seq_len: int, keys: SampleKeys) -> NDArray[np.float64] | None:
        return None

    def for_validation(self) -> Self:
        return self

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        if self.prepend_id is None:
            inputs, labels = tokens[:, :-1], tokens[:, 1:]
        else:
            first = torch.full_like(tokens[:, :1], self.prepend_id)
            inputs, labels = torch.cat([first, tokens[:, :-1]], dim=1), tokens
        batch, length = labels.shape
        network_input = NetworkInput(
            tokens=inputs,
            positions=torch.arange(length).expand(batch, length),
            pattern=AttentionPattern.CAUSAL,
            prefix_length=torch.zeros(batch, dtype=torch.int64),
            dropout_keys=torch.from_numpy(keys.dropout_keys()),
        )
        weight = 1.0 / (keys.global_batch_size * length)
        return network_input, Targets(labels, torch.full((batch, length), weight))

    def work(self, seq_len: int) -> list[RowWork]:
        length = self.predicted_tokens(seq_len)
        return [RowWork(1.0, AttentionPattern.CAUSAL, length, length)]
