"""What the network is fed and what it is scored against: the interface of every objective.

Shape letters: B batch rows, S tokens fed per row, L tokens of a training sequence (S = L or 2L),
Q output positions of a row, which are the tokens of its first stream: L of them, or fewer where the
noised stream lacks tokens in front (S = Q + L).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.columns import Column


@dataclass(frozen=True)
class NetworkInput:
    """One micro-batch for the network.

    tokens, positions: int64 [B, S]. In a two-stream pattern S = 2L, and the noised stream comes
    first. prefix_length: int64 [B], the number of clean tokens in front in prefix patterns, and
    zero in others. dropout_keys: int64 [B], one key per row, so that dropout depends on the sample
    alone. skipped: L - Q; see `without_idle`. separate: whether tokens see only those of their own
    document, which their positions then tell; see `esolm.model.documents`.
    """

    tokens: Tensor
    positions: Tensor
    pattern: AttentionPattern
    prefix_length: Tensor
    dropout_keys: Tensor
    block_size: int = 1
    skipped: int = 0
    separate: bool = False

    def rows(self) -> Tensor:
        """The integers that go with each row, int64 [B, 6]; see `esolm.model.columns.Column`."""
        columns = {
            Column.PATTERN: torch.full_like(self.prefix_length, self.pattern.index),
            Column.BLOCK_SIZE: torch.full_like(self.prefix_length, self.block_size),
            Column.PREFIX_LENGTH: self.prefix_length,
            Column.DROPOUT_KEY: self.dropout_keys,
            Column.SKIPPED: torch.full_like(self.prefix_length, self.skipped),
            Column.SEPARATE: torch.full_like(self.prefix_length, self.separate),
        }
        return torch.stack([columns[column] for column in Column], dim=1)


@dataclass(frozen=True)
class Targets:
    """The labels and weights of the Q output positions of every row.

    labels: int64 [B, Q]. weights: float32 [B, Q], zero where nothing is predicted. They are
    normalised by counts that are known before the step, so the loss of a global batch is the plain
    sum over all its positions. times: the t that was drawn for every position, float64 [B, Q]; None
    for a loss term without time.
    """

    labels: Tensor
    weights: Tensor
    times: NDArray[np.float64] | None = None

    def part(self, rank: int, ranks: int) -> "Targets":
        """Returns those of every row's outputs that a rank holds, of so many context-parallel ones.

        See `esolm.model.context_parallel`.
        """
        held = slice(rank, None, ranks)
        times = None if self.times is None else self.times[:, held]
        return Targets(self.labels[:, held], self.weights[:, held], times)

    def sparse(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (index, labels, weights), each [N], of the N positions that carry loss.

        The index of a position is its place in the flattened [B * Q] outputs.
        """
        index = self.weights.flatten().nonzero().squeeze(1)
        return index, self.labels.flatten()[index], self.weights.flatten()[index]


def without_idle(
    inputs: NetworkInput, targets: Targets, multiple: int
) -> tuple[NetworkInput, Targets]:
    """Leaves out noised tokens in front that carry no loss and that no other token sees.

    What the others come to, the loss and every gradient are the same. All rows lose equally many
    tokens, a multiple of the given number, because a micro-batch has one shape.
    """
    if not inputs.pattern.noised_are_apart:
        return inputs, targets
    idle = int((targets.weights.cumsum(1) == 0).sum(1).min())
    skipped = min(idle, targets.weights.shape[1] - 1) // multiple * multiple
    if not skipped:
        return inputs, targets
    fewer = replace(
        inputs,
        tokens=inputs.tokens[:, skipped:],
        positions=inputs.positions[:, skipped:],
        skipped=inputs.skipped + skipped,
    )
    times = None if targets.times is None else targets.times[:, skipped:]
    return fewer, Targets(targets.labels[:, skipped:], targets.weights[:, skipped:], times)
