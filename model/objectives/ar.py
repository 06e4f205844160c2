"""The autoregressive baseline predicts each token from those before it, left to right."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.documents import place_of, standing
from esolm.model.flops import RowWork
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.objectives.base import (
    SEQUENTIAL,
    Decoding,
    Objective,
    ObjectiveKind,
    Orders,
    VocabularyIds,
    end_of_documents,
)
from esolm.model.objectives.draws import SampleKeys


@dataclass(frozen=True)
class AutoRegressive(Objective):
    """The autoregressive objective.

    prepend_id: the token that is put before the sequence (bos or mask). If it is None, the first
    token is not predicted and a row carries L - 1 losses. eos_id: what ends the documents of a row
    that are kept apart, if they are; the token is then put before each of them.
    """

    prepend_id: int | None = None
    eos_id: int | None = None
    context: int = 0

    def problems(self, seq_len: int) -> list[str]:
        if not self.keeps_apart or self.prepend_id is not None:
            return []
        return [
            f"{self._asked_by} needs a token that the first one of each document is "
            "predicted from: set objective.prepend to bos or mask"
        ]

    def predicted_tokens(self, seq_len: int) -> int:
        return seq_len - (self.prepend_id is None)

    def terms(self, global_batch_size: int) -> dict[str, range]:
        return {SEQUENTIAL: range(global_batch_size)}

    @property
    def is_exact(self) -> bool:
        return True

    @property
    def orders(self) -> Orders:
        return Orders.LEFT_TO_RIGHT

    @property
    def diffusion_share(self) -> float:
        return 0.0

    def with_context(self, length: int) -> Self:
        return replace(self, context=length)

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        if self.prepend_id is None:
            inputs, labels = tokens[:, :-1], tokens[:, 1:]
        else:
            first = torch.full_like(tokens[:, :1], self.prepend_id)
            inputs, labels = torch.cat([first, tokens[:, :-1]], dim=1), tokens
        batch, length = labels.shape
        positions = torch.arange(length).expand(batch, length)
        if self.keeps_apart:
            assert self.prepend_id is not None, "see `problems`"
            positions = standing(labels, self.eos_id, self.context)
            inputs = inputs.masked_fill(place_of(positions) == 0, self.prepend_id)
        network_input = NetworkInput(
            tokens=inputs,
            positions=positions,
            pattern=AttentionPattern.CAUSAL,
            prefix_length=torch.zeros(batch, dtype=torch.int64),
            dropout_keys=torch.from_numpy(keys.dropout_keys()),
            separate=self.keeps_apart,
        )
        weight = 1.0 / (keys.global_batch_size * length)
        return network_input, Targets(labels, torch.full((batch, length), weight))

    def work(self, seq_len: int) -> list[RowWork]:
        length = self.predicted_tokens(seq_len)
        return [RowWork(1.0, AttentionPattern.CAUSAL, length, length)]


def _prepend_id(settings: Mapping[str, Any], ids: VocabularyIds) -> int | None:
    """Returns the id put before every sequence; None for no token, or for a bos not known."""
    prepend = settings.get("prepend", "none")
    allowed = {"none": None, "bos": ids.bos_id, "mask": ids.mask_id}
    if prepend not in allowed:
        raise ValueError(f"objective.prepend is '{prepend}'; choose none, bos or mask")
    return allowed[prepend]


def _build(settings: Mapping[str, Any], ids: VocabularyIds) -> AutoRegressive:
    prepend_id = _prepend_id(settings, ids)
    if settings.get("prepend") == "bos" and prepend_id is None:
        raise ValueError("the network was trained with bos in front: name its --tokenizer")
    return AutoRegressive(prepend_id, end_of_documents(settings, ids))


KIND = ObjectiveKind(
    "ar",
    build=_build,
    orders=Orders.LEFT_TO_RIGHT,
    decoding=Decoding(decoders=("ar",), options=(), fixed_share=0.0),
    bundle_fields=lambda settings, ids: {"prepend_token_id": _prepend_id(settings, ids)},
)
