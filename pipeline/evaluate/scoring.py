"""Exact log-likelihoods of continuations under a bundle's network, each in one forward pass.

Shape letters: B is the number of requests, S of tokens fed, C of tokens in the longest
continuation, V the size of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esolm.model.objectives import Orders, objective_kind
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.export.bundle.attention_esolm import WholeRows
from esolm.pipeline.export.bundle.layers_esolm import rotary_angles


@dataclass(frozen=True)
class Score:
    """The score of a continuation.

    log_p: its log-likelihood in nats. is_greedy: whether each of its tokens is the likeliest. A
    continuation without tokens has a log_p of 0 and is greedy.
    """

    log_p: float
    is_greedy: bool


class Scorer:
    """Scores continuations left to right, for networks trained as an Eso-LM or as `ar`.

    An Eso-LM is read as one that writes nothing by diffusion, which is causal in both variants.

    model: the bundle's EsoLMForMaskedLM. first_id: the token that is put before the first token of
    a text if the network is an `ar` that was fed nothing in front of its sequences.
    """

    def __init__(self, model: Any, first_id: int | None = None) -> None:
        config = model.config
        orders = objective_kind(config.objective).orders
        self._in_one_order = orders is Orders.LEFT_TO_RIGHT
        if orders is Orders.NONE:
            raise ConfigError(
                "only networks trained as an Eso-LM or as ar have left-to-right likelihoods, "
                f"this one was trained as {config.trained_as}"
            )
        self._model, self._mask_id = model, config.mask_token_id
        self._front = first_id if config.prepend_token_id is None else config.prepend_token_id
        self._always_in_front = config.prepend_token_id is not None

    def score(self, requests: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
        """Scores all (context, continuation) pairs of token ids in one forward pass.

        Raises ConfigError if an `ar` network has nothing to predict a first token from.
        """
        if not any(continuation for _, continuation in requests):
            return [Score(0.0, True)] * len(requests)
        logits = (self._ar_logits if self._in_one_order else self._esolm_logits)(requests)
        scores = []
        for row, (_, continuation) in zip(logits, requests, strict=True):
            log_p = row[: len(continuation)].double().log_softmax(-1)
            labels = torch.tensor(continuation, dtype=torch.int64, device=log_p.device)
            chosen = log_p.gather(1, labels[:, None])
            is_greedy = bool((log_p.argmax(1) == labels).all())
            scores.append(Score(float(chosen.sum()), is_greedy))
        return scores

    def _esolm_logits(self, requests: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """Returns logits [B, C, V]. A row is fed [context | continuation[:-1] | padding | C masks].

        Mask j stands at the position of continuation[j] and sees the context, continuation[:j] and
        itself, which is what it would see if decoding wrote one token per step.
        """
        clean = [context + continuation[:-1] for context, continuation in requests]
        width, masks = max(map(len, clean)), max(len(c) for _, c in requests)
        tokens = torch.full((len(requests), width + masks), self._mask_id)
        positions = torch.zeros_like(tokens)
        visible = torch.eye(width + masks, dtype=torch.bool).repeat(len(requests), 1, 1)
        for row, (context, _) in enumerate(requests):
            size = len(clean[row])
            tokens[row, :size] = torch.tensor(clean[row], dtype=torch.int64)
            positions[row, :size] = torch.arange(size)
            positions[row, width:] = len(context) + torch.arange(masks)
            place = torch.arange(size)
            visible[row, :size, :size] |= place <= place[:, None]
            before = len(context) + torch.arange(masks)
            visible[row, width:, :size] |= place < before[:, None]
        return self._forward(tokens, positions, visible, masks)

    def _ar_logits(self, requests: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        """Returns logits [B, C, V]; a token's prediction is the output at the token before it."""
        longest = max(len(continuation) for _, continuation in requests)
        rows = []
        for context, continuation in requests:
            front = [] if context and not self._always_in_front else [self._front]
            if front == [None]:
                raise ConfigError("the network predicts no first token: give a context or a bos")
            rows.append([*front, *context, *continuation])
        width = max(map(len, rows)) - 1
        tokens = torch.full((len(rows), width), self._mask_id)
        for number, row in enumerate(rows):  # padding is behind everything that is read
            tokens[number, : len(row) - 1] = torch.tensor(row[:-1], dtype=torch.int64)
        with torch.no_grad():
            logits: Tensor = self._model(tokens.to(self._model.device)).logits
        found = logits.new_zeros(len(rows), longest, logits.shape[-1])
        for number, (_, continuation) in enumerate(requests):
            end = len(rows[number]) - 1
            found[number, : len(continuation)] = logits[number, end - len(continuation) : end]
        return found

    @torch.no_grad()
    def _forward(self, tokens: Tensor, positions: Tensor, visible: Tensor, keep: int) -> Tensor:
        """Returns the logits of the last `keep` places under the given mask, visible [B, S, S]."""
        model, device = self._model, self._model.device
        attend = WholeRows(visible[:, None].to(device), is_causal=False)
        angles = rotary_angles(positions.to(device), model.config)
        hidden = model.model.embed_tokens(tokens.to(device))
        for block, turned in zip(model.model.layers, angles, strict=True):
            hidden = block(hidden, turned, attend)
        logits: Tensor = model.logits_of(model.model.norm(hidden[:, -keep:]))
        return logits


def windows(ids: list[int], size: int) -> list[tuple[list[int], list[int]]]:
    """Cuts a long text into (context, continuation) pairs that score every token once.

    The first window has no context; those after it have the last token before them as context.
    """
    found: list[tuple[list[int], list[int]]] = [([], ids[:size])] if ids else []
    for start in range(size, len(ids), size - 1):
        found.append((ids[start - 1 : start], ids[start : start + size - 1]))
    return found
