"""The rows of a micro-batch with some tokens masked, in the order in which they are fed.

Shape letters: B is the number of rows, L the number of tokens of a row.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.documents import standing
from esolm.model.inputs import NetworkInput, Targets
from esolm.model.objectives.draws import SampleKeys

Mask = NDArray[np.bool_]


def clean_first(masked: Mask, scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns a generation order [B, L]: natural positions of the clean tokens, then the masked.

    scores: numbers in [0, 1) that order the tokens within each of the two parts.
    """
    return np.argsort(masked + scores, axis=1, kind="stable")


def natural_scores(length: int) -> NDArray[np.float64]:
    """Returns scores [L] that keep the natural order."""
    return np.arange(length) / length


@dataclass(frozen=True)
class MaskedRows:
    """Rows of tokens, some of them masked, in the order in which they are fed.

    All fields are [B, L]. labels: the token ids, int64. masked: which tokens are masked, bool.
    positions: the natural position of each token, int64, or where it stands among the documents of
    its row. separate: which of the two.
    """

    labels: Tensor
    masked: Tensor
    positions: Tensor
    separate: bool = False

    @classmethod
    def in_order(
        cls,
        tokens: Tensor,
        masked: Mask,
        order: NDArray[np.int64],
        eos_id: int | None = None,
        context: int = 0,
    ) -> "MaskedRows":
        """Brings tokens and masks, given at natural positions, into a generation order.

        eos_id, context: what ends the documents that are kept apart, as of `standing`; without
        either a row is one document.
        """
        rows, index = cls.in_place(tokens, masked, eos_id, context), torch.from_numpy(order)
        return cls(
            rows.labels.gather(1, index),
            rows.masked.gather(1, index),
            rows.positions.gather(1, index),
            rows.separate,
        )

    @classmethod
    def in_place(
        cls, tokens: Tensor, masked: Mask, eos_id: int | None = None, context: int = 0
    ) -> "MaskedRows":
        """Makes rows that keep the natural order; eos_id and context as in `in_order`."""
        separate = eos_id is not None or context > 0
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        if separate:
            positions = standing(tokens, eos_id, context)
        return cls(tokens, torch.from_numpy(masked), positions, separate)

    def one_stream(self, mask_id: int, pattern: AttentionPattern, keys: SampleKeys) -> NetworkInput:
        """Makes input of one stream, S = L: the rows with the mask in place of masked tokens."""
        return NetworkInput(
            tokens=self.labels.masked_fill(self.masked, mask_id),
            positions=self.positions,
            pattern=pattern,
            prefix_length=self._clean_in_front(),
            dropout_keys=torch.from_numpy(keys.dropout_keys()),
            separate=self.separate,
        )

    def two_streams(
        self, mask_id: int, pattern: AttentionPattern, keys: SampleKeys, block_size: int = 1
    ) -> NetworkInput:
        """Makes input of two streams, S = 2L: the noised rows, then the same rows clean.

        Both streams have the same positions.
        """
        noised = self.labels.masked_fill(self.masked, mask_id)
        return NetworkInput(
            tokens=torch.cat([noised, self.labels], dim=1),
            positions=torch.cat([self.positions, self.positions], dim=1),
            pattern=pattern,
            prefix_length=self._clean_in_front(),
            dropout_keys=torch.from_numpy(keys.dropout_keys()),
            block_size=block_size,
            separate=self.separate,
        )

    def targets(
        self, weights: NDArray[np.float64], times: NDArray[np.float64] | None = None
    ) -> Targets:
        """Makes targets with loss on the masked tokens; weights and times broadcast to [B, L]."""
        shape = tuple(self.labels.shape)
        return Targets(
            self.labels,
            (self.masked * torch.from_numpy(weights)).float(),
            None if times is None else np.broadcast_to(times, shape),
        )

    def _clean_in_front(self) -> Tensor:
        return (self.masked.cumsum(1) == 0).sum(1)
