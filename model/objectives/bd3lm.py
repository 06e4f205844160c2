"""The block diffusion baseline: blocks follow left to right, with masked diffusion within each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.documents import place_of, standing
from esolm.model.flops import RowWork
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.objectives.base import (
    DIFFUSION,
    Decoding,
    Objective,
    ObjectiveKind,
    VocabularyIds,
    end_of_documents,
)
from esolm.model.objectives.draws import Purpose, SampleKeys
from esolm.model.objectives.noise import EPSILON, Array, stratified_t
from esolm.model.objectives.rows import Mask, MaskedRows


@dataclass(frozen=True)
class BD3LM(Objective):
    """The block diffusion objective: a token of a block at time t is masked with probability t.

    t_min, t_max: the range from which one t is drawn for each block; a range within [0.001, 1] that
    is smaller makes a clipped schedule, whose loss is not a bound. resample: whether the masks of a
    block are drawn again until their share lies in the range too. keep_first: whether the first
    token of a row is given. low_variance: whether the bound's weight 1 / t is dropped (in training
    only). eos_id: what ends the documents of a row that are kept apart, if they are; blocks then
    begin with each of them. Source: arXiv 2503.09573, sections 3-5.
    """

    mask_id: int
    block_size: int
    t_min: float = EPSILON
    t_max: float = 1.0
    resample: bool = False
    keep_first: bool = True
    low_variance: bool = False
    eos_id: int | None = None
    context: int = 0

    def problems(self, seq_len: int) -> list[str]:
        if self.block_size < 1 or seq_len % self.block_size:
            return [
                f"objective.block_size is {self.block_size}; it must divide train.seq_len {seq_len}"
            ]
        if self.context % self.block_size:
            return [
                f"train.context_schedule: objective.block_size {self.block_size} does not divide a "
                f"context of {self.context} tokens"
            ]
        if not EPSILON <= self.t_min <= self.t_max <= 1.0:
            return [
                f"objective.t_min {self.t_min} and objective.t_max {self.t_max} must be in order "
                f"and lie in [{EPSILON}, 1]"
            ]
        if self.keeps_apart and self.keep_first:
            return [
                f"{self._asked_by} and objective.keep_first do not go together: how "
                "many tokens are given would depend on the row; set objective.keep_first to false"
            ]
        if self.resample and not self._can_be_allowed()[-1]:
            return [
                f"no number of masks in a block of {self.block_size} makes a share between "
                f"objective.t_min {self.t_min} and objective.t_max {self.t_max}; set "
                "objective.resample to false or widen the range"
            ]
        return []

    def predicted_tokens(self, seq_len: int) -> int:
        return seq_len - self.keep_first

    def terms(self, global_batch_size: int) -> dict[str, range]:
        return {DIFFUSION: range(global_batch_size)}

    def for_validation(self) -> Self:
        """The same objective with the full range of t and the weights of the bound.

        Blocks of one token take t = 1, where the loss is the exact likelihood.
        """
        t_min = 1.0 if self.block_size == 1 else EPSILON
        return replace(self, t_min=t_min, t_max=1.0, resample=False, low_variance=False)

    @property
    def is_exact(self) -> bool:
        return self.block_size == 1

    @property
    def without_likelihood(self) -> str | None:
        if self.is_exact:
            return None
        return (
            "no exact likelihood: attention within a block is bidirectional, so each of its tokens "
            "would take a pass of its own"
        )

    def clipped(self, t_min: float, t_max: float) -> Self:
        return replace(self, t_min=t_min, t_max=t_max, low_variance=False)

    def with_context(self, length: int) -> Self:
        return replace(self, context=length)

    def corrupt(self, tokens: Tensor, keys: SampleKeys) -> tuple[NetworkInput, Targets]:
        length = tokens.shape[1]
        blocks = self._blocks(tokens)
        t_of_token = np.take_along_axis(self._times(keys, blocks), blocks, axis=1)
        masked = self._draw_masked(keys, t_of_token, blocks)
        if self.keep_first:
            masked[:, 0] = False
        weights = np.ones_like(t_of_token) if self.low_variance else 1.0 / t_of_token
        weights /= keys.global_batch_size * self.predicted_tokens(length)
        rows = MaskedRows.in_place(tokens, masked, self.eos_id, self.context)
        pattern = AttentionPattern.BLOCK_TWO_STREAM
        inputs = rows.two_streams(self.mask_id, pattern, keys, self.block_size)
        return inputs, rows.targets(weights, t_of_token)

    def work(self, seq_len: int) -> list[RowWork]:
        """The one kind of row; the small effect of resampling on the masks is left out."""
        scored = (self.t_min + self.t_max) / 2 * seq_len
        pattern = AttentionPattern.BLOCK_TWO_STREAM
        return [RowWork(1.0, pattern, seq_len, scored, block_size=self.block_size)]

    def _blocks(self, tokens: Tensor) -> NDArray[np.int64]:
        """Returns the number of each token's block in its row, [B, L]."""
        if not self.keeps_apart:
            return np.broadcast_to(np.arange(tokens.shape[1]) // self.block_size, tokens.shape)
        places = place_of(standing(tokens, self.eos_id, self.context)).numpy()
        blocks: NDArray[np.int64] = (places % self.block_size == 0).cumsum(axis=1) - 1
        return blocks

    def _times(self, keys: SampleKeys, blocks: NDArray[np.int64]) -> Array:
        """Draws t for every block of these numbers, [B, the most blocks of a row].

        The t of block b is stratified over the global batch, for each b by itself. Block b starts a
        share b / (L / block_size) into the strata, so that the blocks of one row spread over the
        range.
        """
        num_slots, number = keys.global_batch_size, np.arange(int(blocks.max()) + 1)
        shift = number * num_slots // (blocks.shape[1] // self.block_size)
        slot: NDArray[np.int64] = (keys.slot[:, None] + shift) % num_slots
        uniform = keys.uniforms(Purpose.TIME, len(number))
        return stratified_t(uniform, slot, num_slots, self.t_min, self.t_max)

    def _draw_masked(self, keys: SampleKeys, t_of_token: Array, blocks: NDArray[np.int64]) -> Mask:
        """Draws which tokens are masked, bool [B, L].

        The draws of a row depend on the row alone, however often other rows are drawn again. The
        last block of a document may be so short that no share of it lies in the range; such a one
        keeps its first draw.
        """
        length, attempts = t_of_token.shape[1], 1
        masked: Mask = keys.uniforms(Purpose.MASK, length) < t_of_token
        sizes = _per_block(np.ones_like(masked), blocks)
        settled = ~self._can_be_allowed()[sizes.astype(np.int64)]
        while self.resample:
            redo = ~(self._allowed(_per_block(masked, blocks) / sizes) | settled)
            if not redo.any():
                break
            attempts += 1
            draws = keys.uniforms(Purpose.MASK, attempts * length)[:, -length:]
            masked = np.where(redo, draws < t_of_token, masked)
        return masked

    def _can_be_allowed(self) -> Mask:
        """Says of how many tokens a block may be so that a share of it is allowed, from 0 on."""
        sizes = range(1, self.block_size + 1)
        allowed = [self._allowed(np.arange(size + 1) / size).any() for size in sizes]
        return np.array([False, *allowed])

    def _allowed(self, shares: Array) -> Mask:
        """Says which shares of masked tokens lie in the range of t.

        A t_min of EPSILON is only the floor of the schedule, so it sets no lower limit.
        """
        at_least: Mask = (shares >= self.t_min) | (self.t_min == EPSILON)
        return at_least & (shares <= self.t_max)


def _per_block(marked: Mask, blocks: NDArray[np.int64]) -> Array:
    """Returns how many tokens are marked in the block of each token, [B, L]."""
    numbers = blocks + (blocks.max() + 1) * np.arange(len(blocks))[:, None]
    found: Array = np.bincount(numbers.ravel(), weights=marked.ravel())[numbers]
    return found


SETTINGS = ("block_size", "t_min", "t_max", "resample", "keep_first", "low_variance")


def _build(settings: Mapping[str, Any], ids: VocabularyIds) -> BD3LM:
    own = {key: settings[key] for key in SETTINGS if key in settings}
    return BD3LM(mask_id=ids.mask_id, eos_id=end_of_documents(settings, ids), **own)


KIND = ObjectiveKind(
    "bd3lm",
    build=_build,
    decoding=Decoding(decoders=("bd3lm",), options=("num_steps",), fixed_share=1.0),
    bundle_fields=lambda settings, ids: {
        "block_size": settings.get("block_size"),
        "keep_first": settings.get("keep_first", True),
    },
)
