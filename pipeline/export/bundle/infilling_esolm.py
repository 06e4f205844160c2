# mypy: ignore-errors
"""Text with gaps, filled by whatever order the network writes in; given tokens never change."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from .likelihood_esolm import has_likelihood
from .sampling_esolm import Stream, random_numbers

MOST_CANDIDATES = 64


@dataclass
class Infilled:
    """What `infill` returns.

    text: None without a tokenizer. tokens: int64 [L]; given: bool [L]; lengths: tokens of each gap;
    segments: the tokens of each segment. nfe: forward passes.
    """

    text: str | None
    tokens: Any
    given: Any
    lengths: list[int]
    segments: list[list[int]]
    nfe: int


def infill(
    network: Any, segments: list[Any], tokenizer: Any, choose: str, seed: int, settings: Any
) -> Infilled:
    """See `EsoLMForMaskedLM.infill`."""
    if choose not in ("likeliest", "drawn"):
        raise ValueError(f"choose is '{choose}'; it is 'likeliest' or 'drawn'")
    pieces = [_piece(segment, tokenizer) for segment in segments]
    ranges = [piece for piece in pieces if isinstance(piece, range)]
    if not ranges:
        raise ValueError("there is no gap among the segments")
    candidates = _candidates(network.config, ranges, choose, seed)
    written, nfe = _write(network, pieces, candidates, seed, settings)
    best = 0
    if len(candidates) > 1:
        scores = [
            float(network.log_likelihood(torch.from_numpy(tokens).to(network.device)[None]))
            / len(tokens)
            for tokens in written
        ]
        best = int(np.argmax(scores))
    return _result(written[best], pieces, candidates[best], tokenizer, nfe)


def _candidates(config: Any, ranges: list[range], choose: str, seed: int) -> list[tuple[int, ...]]:
    """Lengths of the gaps, one or all that are to be compared. Raises ValueError if they cannot."""
    if choose == "drawn":
        draws = random_numbers(seed, 0, Stream.LENGTHS)
        return [tuple(int(draws.choice(sizes)) for sizes in ranges)]
    number = int(np.prod([len(sizes) for sizes in ranges]))
    if number > MOST_CANDIDATES:
        raise ValueError(
            f"the gaps have {number} lengths together, {MOST_CANDIDATES} at most are tried; "
            "narrow their ranges, or choose='drawn'"
        )
    if number > 1 and not has_likelihood(config):
        raise ValueError(
            f"a network trained as '{config.trained_as}' has no exact likelihood, so nothing tells "
            "which of several lengths is the likeliest; give each gap one length, or choose='drawn'"
        )
    return list(product(*ranges))


def _piece(segment: Any, tokenizer: Any) -> list[int] | range:
    """Tokens, or the lengths that a gap may have."""
    if isinstance(segment, str):
        if tokenizer is None:
            raise ValueError("a segment is text: give the tokenizer, or token ids")
        return list(tokenizer.encode(segment, add_special_tokens=False))
    if isinstance(segment, int) and not isinstance(segment, bool):
        segment = (segment, segment)
    if isinstance(segment, tuple) and len(segment) == 2:
        least, most = segment
        if not 1 <= least <= most:
            raise ValueError(f"a gap of {least} to {most} tokens; it has one at least")
        return range(least, most + 1)
    if isinstance(segment, list):
        return [int(token) for token in segment]
    raise ValueError(f"a segment is text, token ids, a length or two: not {segment!r}")


def _write(
    network: Any, pieces: list[Any], candidates: list[tuple[int, ...]], seed: int, settings: Any
) -> tuple[list[np.ndarray], int]:
    mask_id, texts = network.config.mask_token_id, []
    for lengths in candidates:
        sizes = iter(lengths)
        parts = [[mask_id] * next(sizes) if isinstance(p, range) else p for p in pieces]
        texts.append(np.array([token for part in parts for token in part], dtype=np.int64))
    for piece in pieces:
        if not isinstance(piece, range) and mask_id in piece:
            raise ValueError(f"a segment has the mask id {mask_id}: make it a gap")
    batch = settings.batch(network, len(texts), max(map(len, texts)))
    writings = [batch.add(settings.request(text, mask_id, seed, 0)) for text in texts]
    nfe = 0
    while batch.step():
        nfe += 1
    return [batch.tokens(writing) for writing in writings], nfe


def _result(
    tokens: np.ndarray, pieces: list[Any], lengths: tuple[int, ...], tokenizer: Any, nfe: int
) -> Infilled:
    sizes, first, segments, given = iter(lengths), 0, [], []
    for piece in pieces:
        size = next(sizes) if isinstance(piece, range) else len(piece)
        segments.append(tokens[first : first + size].tolist())
        given += [not isinstance(piece, range)] * size
        first += size
    text = None if tokenizer is None else tokenizer.decode(tokens.tolist())
    return Infilled(
        text, torch.from_numpy(tokens), torch.tensor(given), list(lengths), segments, nfe
    )
