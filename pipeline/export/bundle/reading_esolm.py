# mypy: ignore-errors
"""How rows of tokens are read in one pass: their order, their positions, who sees whom.

Without a pattern an unfinished text is read as the network reads it when it writes: `ar` causally,
`mdlm` in both directions, `bd3lm` in blocks. An Eso-LM reads what is written first and the masks
behind it, so that every mask sees all that is written, wherever it stands, and the masks before it.

Shape letters: B batch, S tokens fed, L output positions, D hidden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_esolm import BLOCK_CAUSAL, PATTERNS, dense_mask, visible


@dataclass(frozen=True)
class RowsRead:
    """ids, positions: int64 [B, S], as they are fed. mask: bool [B, 1, S, S], or None.

    length: the first so many have outputs. places: int64 [B, S], which token is fed where, if that
    is not as it was given.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | None
    is_causal: bool
    length: int
    places: Tensor | None = None

    def in_place(self, hidden: Tensor) -> Tensor:
        """[B, S, D] as fed -> [B, L, D] as given."""
        if self.places is not None:
            return hidden.gather(1, self.places.argsort(1)[..., None].expand_as(hidden))
        return hidden[:, : self.length]


def reading_of(
    config: Any,
    ids: Tensor,
    positions: Any,
    pattern: str | None,
    prefix: Any,
    block_size: int | None,
    attention_mask: Tensor | None,
    documents: Tensor | None = None,
) -> RowsRead:
    """Raises ValueError for what cannot be read; the arguments are those of `forward`."""
    shown, places = shown_of(attention_mask, ids), None
    if documents is not None and (positions is None or shown is not None):
        raise ValueError("document_ids go with position_ids, and with rows without padding")
    if pattern is None and positions is not None:
        pattern = "causal"
    elif pattern is None:
        pattern = OWN_PATTERNS.get(config.trained_as, "causal")
        if config.objective == "esolm":
            rank = ranks(config, ids, shown)
            places = None if in_order(rank) else rank.argsort(dim=1, stable=True)
            if pattern == "prefix" and config.alpha_0 != 0:
                prefix = (rank == 0).sum(1)
    streams = streams_of(pattern, ids, shown)
    if positions is None:
        positions = natural_positions(ids, shown, streams)
    positions = expanded("position_ids", positions, ids)
    if places is not None:
        ids, positions = ids.gather(1, places), positions.gather(1, places)
        shown = None if shown is None else shown.gather(1, places)
    mask = None
    separate = shown is not None or documents is not None
    if separate or pattern not in ("bidirectional", "causal"):
        prefix = expanded("prefix_length", 0 if prefix is None else prefix, ids[:, 0])
        block_size = block_size or config.block_size or 1
        if documents is None:
            mask = mask_of(pattern, ids, prefix, block_size, shown)
        else:
            documents = expanded("document_ids", documents, ids)
            mask = mask_within(pattern, positions, prefix, block_size, documents)
    is_causal = pattern == "causal" and mask is None
    return RowsRead(ids, positions, mask, is_causal, ids.shape[1] // streams, places)


OWN_PATTERNS = {
    "esolm A": "prefix", "esolm B": "causal", "ar": "causal", "mdlm": "bidirectional",
    "bd3lm": BLOCK_CAUSAL,
}  # fmt: skip
"""By `EsoLMConfig.trained_as`."""


def shown_of(attention_mask: Tensor | None, ids: Tensor) -> Tensor | None:
    """Bool [B, S], False where a row is padded; None if none is."""
    if attention_mask is None:
        return None
    shown = torch.as_tensor(attention_mask, device=ids.device).bool()
    if shown.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(shown.shape)}; {tuple(ids.shape)} is due"
        )
    return None if bool(shown.all()) else shown


def ranks(config: Any, ids: Tensor, shown: Tensor | None) -> Tensor:
    """[B, S]: 0 for what is written, 1 for masks, 2 for padding."""
    rank = (ids == config.mask_token_id).long()
    return rank if shown is None else rank.where(shown, 2)


def in_order(rank: Tensor) -> bool:
    return bool((rank[:, 1:] >= rank[:, :-1]).all())


def streams_of(pattern: str, ids: Tensor, shown: Tensor | None) -> int:
    """The number of streams of the pattern. Raises ValueError if they cannot be these."""
    if pattern not in (*PATTERNS, BLOCK_CAUSAL):
        raise ValueError(f"attention_pattern '{pattern}' is unknown; choose of {PATTERNS}")
    streams = 2 if "two_stream" in pattern else 1
    if ids.shape[1] % streams:
        raise ValueError(f"'{pattern}' takes two streams, not {ids.shape[1]} tokens")
    if streams == 2 and shown is not None:
        raise ValueError(f"attention_mask has zeros, and '{pattern}' takes rows without padding")
    return streams


def natural_positions(ids: Tensor, shown: Tensor | None, streams: int) -> Tensor:
    """[S] or [B, S]: 0, 1, 2, ... in each stream; padding is not counted."""
    if shown is not None:
        return (shown.cumsum(1) - 1).clamp(min=0)
    return torch.arange(ids.shape[1] // streams, device=ids.device).repeat(streams)


def mask_of(
    pattern: str, ids: Tensor, prefix: Tensor, block_size: int, shown: Tensor | None
) -> Tensor:
    """Who sees whom, bool [B, 1, S, S]; nothing sees padding, and nothing counts it."""
    if shown is None:
        return dense_mask(pattern, ids.shape[1], prefix, block_size)
    index = natural_positions(ids, shown, 1)[:, None]
    q, k = index[..., :, None], index[..., None, :]
    seen = visible(pattern, q, k, 1, prefix[:, None, None, None], block_size)
    # Padding sees itself: a row of the mask must not be empty.
    itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
    return (seen & shown[:, None, None]) | itself


def mask_within(
    pattern: str, positions: Tensor, prefix: Tensor, block_size: int, documents: Tensor
) -> Tensor:
    """Who sees whom, bool [B, 1, S, S], within documents, whose blocks begin with them."""
    index, size = None, positions.shape[1]
    if pattern == "block_two_stream":
        second = torch.arange(size, device=positions.device) >= size // 2
        index = positions + second * (size // 2)
    seen = dense_mask(pattern, size, prefix, block_size, index)
    return seen & (documents[:, None, :, None] == documents[:, None, None, :])


def expanded(name: str, values: Any, like: Tensor) -> Tensor:
    """A number, list or tensor in the shape and on the device of `like`."""
    values = torch.as_tensor(values, device=like.device)
    try:
        return values.expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; {tuple(like.shape)} is due"
        ) from None
