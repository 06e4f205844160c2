"""The masked diffusion baseline predicts masked tokens from all others, in both directions."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.flops import RowWork
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.objectives import noise
from esolm.model.objectives.base import (
    DIFFUSION,
    Decoding,
    Objective,
    ObjectiveKind,
    end_of_documents,
)
from esolm.model.objectives.draws import SampleKeys
from esolm.model.objectives.rows import MaskedRows


@dataclass(frozen=True)
class MDLM(Objective):
    """The masked diffusion objective.

    low_variance: whether the bound's weight is dropped (in training only). eos_id: what ends the
    documents of a row that are kept apart, if they are. Source: arXiv 2406.07524.
    """

    mask_id: int
    low_variance: bool = False
    eos_id: int | None = None
    context: int = 0

    def predicted_tokens(self, seq_len: int) -> int:
        return seq_len

    def terms(self, global_batch_size: int) -> dict[str, range]:
        return {DIFFUSION: range(global_batch_size)}

    @property
    def without_likelihood(self) -> str:
        return (
            "no exact likelihood: attention is bidirectional, so what is known of a token changes "
            "with every other one, and each would take a pass over the whole row"
        )

    def for_validation(self) -> Self:
        return replace(self, low_variance=False)

    def with_context(self, length: int) -> Self:
        return replace(self, context=length)

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        num_rows, length = keys.global_batch_size, tokens.shape[1]
        t = noise.row_times(keys, num_rows)
        masked, weights = noise.draw_masked(keys, length, t, 1.0, num_rows, self.low_variance)
        rows = MaskedRows.in_place(tokens, masked, self.eos_id, self.context)
        inputs = rows.one_stream(self.mask_id, AttentionPattern.BIDIRECTIONAL, keys)
        return inputs, rows.targets(weights, t)

    def work(self, seq_len: int) -> list[RowWork]:
        scored = (1.0 - noise.mean_alpha(1.0)) * seq_len
        return [RowWork(1.0, AttentionPattern.BIDIRECTIONAL, seq_len, scored)]


KIND = ObjectiveKind(
    "mdlm",
    build=lambda settings, ids: MDLM(
        ids.mask_id, settings.get("low_variance", False), end_of_documents(settings, ids)
    ),
    decoding=Decoding(decoders=("mdlm",), options=("num_steps",), fixed_share=1.0),
)
