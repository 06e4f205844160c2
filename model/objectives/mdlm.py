"""The masked diffusion baseline: predict the masked tokens from all others, in both directions."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.attention import AttentionPattern
from model.flops import RowWork
from model.inputs import NetworkInput, Targets
from model.objectives import noise
from model.objectives.base import DIFFUSION
from model.objectives.draws import SampleKeys
from model.objectives.rows import MaskedRows


@dataclass(frozen=True)
class MDLM:
    """low_variance drops the bound's weight (training only). Source: arXiv 2406.07524."""

    mask_id: int
    low_variance: bool = False

    def problems(self, seq_len: int) -> list[str]:
        return []

    def predicted_tokens(self, seq_len: int) -> int:
        return seq_len

    def terms(self, global_batch_size: int) -> dict[str, range]:
        return {DIFFUSION: range(global_batch_size)}

    def times(self, seq_len: int, keys: SampleKeys) -> NDArray[np.float64] | None:
        t = noise.row_times(keys, keys.global_batch_size)
        return np.broadcast_to(t, (len(t), seq_len))

    def for_validation(self) -> Self:
        return replace(self, low_variance=False)

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        num_rows, length = keys.global_batch_size, tokens.shape[1]
        masked, weights = noise.draw_masked(keys, length, 1.0, num_rows, self.low_variance)
        rows = MaskedRows.in_place(tokens, masked)
        inputs = rows.one_stream(self.mask_id, AttentionPattern.BIDIRECTIONAL, keys)
        return inputs, rows.targets(weights)

    def work(self, seq_len: int) -> list[RowWork]:
        scored = (1.0 - noise.mean_alpha(1.0)) * seq_len
        return [RowWork(1.0, AttentionPattern.BIDIRECTIONAL, seq_len, scored)]
