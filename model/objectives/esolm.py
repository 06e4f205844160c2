"""Eso-LM, variants A and B.

A global batch is shared between the two terms of the bound (Eso-LM section 3): the first
int(kappa * n) rows take the diffusion term, and the others take the sequential term. Rows are fed
in generation order, first the clean tokens, then the masked ones; their positions carry the natural
order. Attention is causal along the generation order, except that in variant A the clean tokens in
front see each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.flops import RowWork
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.objectives import noise
from esolm.model.objectives.base import (
    DIFFUSION,
    SEQUENTIAL,
    Decoding,
    Objective,
    ObjectiveKind,
    Orders,
    VocabularyIds,
    end_of_documents,
    term_of,
)
from esolm.model.objectives.draws import Purpose, SampleKeys
from esolm.model.objectives.rows import MaskedRows, clean_first, natural_scores

# The attention patterns of the diffusion term and of the sequential term.
PATTERNS = {
    "A": (AttentionPattern.PREFIX, AttentionPattern.TWO_STREAM_PREFIX),
    "B": (AttentionPattern.CAUSAL, AttentionPattern.TWO_STREAM),
}


@dataclass(frozen=True)
class EsoLM(Objective):
    """The Eso-LM objective.

    alpha_0: the share of tokens that diffusion generates. kappa: the share of rows that take the
    loss term of diffusion. low_variance: whether the bound's weight is dropped in that term (in
    training only). eos_id: what ends the documents of a row that are kept apart, if they are.
    """

    mask_id: int
    alpha_0: float
    kappa: float
    variant: str = "B"
    low_variance: bool = True
    eos_id: int | None = None
    context: int = 0

    def problems(self, seq_len: int) -> list[str]:
        found = []
        if not 0.0 <= self.alpha_0 <= 1.0:
            found.append(f"objective.alpha_0 is {self.alpha_0}; it must lie in [0, 1]")
        if not 0.0 <= self.kappa <= 1.0:
            found.append(f"objective.kappa is {self.kappa}; it must lie in [0, 1]")
        if (self.alpha_0 == 1.0) != (self.kappa == 1.0):
            found.append("objective.kappa = 1 goes with objective.alpha_0 = 1, and only with it")
        if (self.alpha_0 == 0.0) != (self.kappa == 0.0):
            found.append("objective.kappa = 0 goes with objective.alpha_0 = 0, and only with it")
        if self.variant not in PATTERNS:
            found.append(f"objective.variant is '{self.variant}'; choose A or B")
        return found

    def predicted_tokens(self, seq_len: int) -> int:
        return seq_len

    def for_validation(self) -> Self:
        return replace(self, low_variance=False)

    def terms(self, global_batch_size: int) -> dict[str, range]:
        split = int(self.kappa * global_batch_size)
        spans = {DIFFUSION: range(split), SEQUENTIAL: range(split, global_batch_size)}
        return {name: span for name, span in spans.items() if len(span)}

    @property
    def is_exact(self) -> bool:
        return self.alpha_0 == 0.0

    @property
    def orders(self) -> Orders:
        return Orders.ANY_BEHIND_PREFIX if self.variant == "A" else Orders.ANY

    @property
    def diffusion_share(self) -> float:
        return self.alpha_0

    def at_alpha_0(self, alpha_0: float) -> Self:
        kappa = alpha_0 if alpha_0 in (0.0, 1.0) else 0.5
        return replace(self, alpha_0=alpha_0, kappa=kappa)

    def with_context(self, length: int) -> Self:
        return replace(self, context=length)

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        term = term_of(self, keys)
        num_rows = len(self.terms(keys.global_batch_size)[term])
        if term == DIFFUSION:
            return self._diffusion(tokens, keys, num_rows)
        return self._sequential(tokens, keys, num_rows)

    def work(self, seq_len: int) -> list[RowWork]:
        diffusion, sequential = PATTERNS[self.variant]
        alpha_0, alpha_t = self.alpha_0, noise.mean_alpha(self.alpha_0)
        pairs = seq_len * (seq_len - 1) / 2  # P clean tokens have P (P - 1) / 2 pairs
        kinds = [
            RowWork(
                self.kappa,
                diffusion,
                seq_len,
                (1.0 - alpha_t) * seq_len,
                prefix_pairs=pairs * noise.mean_alpha(alpha_0, power=2),
            ),
            RowWork(
                1.0 - self.kappa,
                sequential,
                seq_len,
                (1.0 - alpha_0) * seq_len,
                prefix_pairs=pairs * alpha_0**2,
                skipped=alpha_0 * seq_len,
            ),
        ]
        return [kind for kind in kinds if kind.share]

    def _diffusion(
        self, tokens: Tensor, keys: SampleKeys, num_rows: int
    ) -> tuple[NetworkInput, Targets]:
        """Makes rows that predict the masked tokens of z_t, with both parts in random order."""
        length = tokens.shape[1]
        t = noise.row_times(keys, num_rows)
        masked, weights = noise.draw_masked(
            keys, length, t, self.alpha_0, num_rows, self.low_variance
        )
        order = clean_first(masked, keys.uniforms(Purpose.ORDER, length))
        rows = MaskedRows.in_order(tokens, masked, order, self.eos_id, self.context)
        inputs = rows.one_stream(self.mask_id, PATTERNS[self.variant][0], keys)
        return inputs, rows.targets(weights, t)

    def _sequential(
        self, tokens: Tensor, keys: SampleKeys, num_rows: int
    ) -> tuple[NetworkInput, Targets]:
        """Makes rows that predict the masked tokens of z_0 left to right, given all before them.

        The clean tokens in front stand in random order. In variant A they see each other, so there
        their order changes nothing.
        """
        length = tokens.shape[1]
        masked = keys.uniforms(Purpose.MASK, length) < 1.0 - self.alpha_0
        scores = np.where(masked, natural_scores(length), keys.uniforms(Purpose.ORDER, length))
        order = clean_first(masked, scores)
        rows = MaskedRows.in_order(tokens, masked, order, self.eos_id, self.context)
        inputs = rows.two_streams(self.mask_id, PATTERNS[self.variant][1], keys)
        return inputs, rows.targets(np.full((len(tokens), 1), 1.0 / (num_rows * length)))


SETTINGS = ("alpha_0", "kappa", "variant", "low_variance")


def _build(settings: Mapping[str, Any], ids: VocabularyIds) -> EsoLM:
    own = {key: settings[key] for key in SETTINGS if key in settings}
    return EsoLM(mask_id=ids.mask_id, eos_id=end_of_documents(settings, ids), **own)


KIND = ObjectiveKind(
    "esolm",
    build=_build,
    orders=Orders.ANY,
    decoding=Decoding(
        decoders=tuple(f"esolm {variant}" for variant in PATTERNS),
        options=("alpha_0", "num_steps"),
        fixed_share=None,
    ),
    bundle_fields=lambda settings, ids: {
        "variant": settings.get("variant"),
        "alpha_0": settings["alpha_0"],
    },
)
