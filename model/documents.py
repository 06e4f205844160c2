"""Where a token stands: in which document of its row, and at which place there.

One integer holds both, so that whatever carries the positions of tokens, between layers, stages and
generation orders, carries their documents too. In rows of one document it is the position itself.
"""

import torch
from torch import Tensor

_PLACES = 1 << 32


def standing(tokens: Tensor, eos_id: int | None, context: int = 0) -> Tensor:
    """Returns where tokens, int64 [B, L] in natural order, stand: int64 [B, L].

    A document ends with eos, if that is given, and behind every `context` tokens of the row, if
    that is; places count from its first token. What a row begins with is a document, though it may
    be the rest of one that the row before began.
    """
    begins = torch.zeros_like(tokens, dtype=torch.bool)
    if eos_id is not None:
        begins = (tokens == eos_id).roll(1, dims=1)
    begins[:, :: context or tokens.shape[1]] = True
    index = torch.arange(tokens.shape[1]).expand_as(tokens)
    starts = torch.where(begins, index, 0).cummax(1).values
    return (begins.cumsum(1) - 1) * _PLACES + index - starts


def place_of(positions: Tensor) -> Tensor:
    """Returns the places of tokens within their documents, by which they are rotated."""
    return positions % _PLACES


def document_of(positions: Tensor) -> Tensor:
    """Returns the number of each token's document, counted in its row from 0."""
    return positions // _PLACES
