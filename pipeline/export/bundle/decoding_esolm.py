# mypy: ignore-errors
"""The decoder of every network: a batch of texts, each at its own point, one pass at a time.

Texts enter and leave between passes, and differ in length, prompt, schedule and phase. What is
written in one does not depend on the others. `generate`, the server and the evaluation use this.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attention_esolm import CachedRows, Group, SlotCache
from .linears_esolm import packed
from .requests_esolm import TextRequest
from .sampling_esolm import Rules, draw
from .walk_esolm import Feed
from .writing_esolm import Writing


class Pass:
    """One forward pass over several texts, as flat indices; all of it is known to the host.

    cells: of all tokens fed, row * slots + cell. told: the ids of those that the cells do not hold,
    -1 of the others. wanted: which of these tokens give logits. places: of these, by text. counts:
    how many of these each text has; spans: where its logits are.
    """

    def __init__(self, writings: list[Writing], slots: int) -> None:
        self.writings = writings
        self.feeds = [writing.feed() for writing in writings]
        starts = np.cumsum([0, *(len(feed.cells) for feed in self.feeds)])
        self.cells = np.concatenate(
            [f.cells + w.row * slots for w, f in zip(writings, self.feeds, strict=True)]
        )
        self.told = np.concatenate(
            [np.full(len(f.cells), -1) if f.told is None else f.told for f in self.feeds]
        )
        self.wanted = np.concatenate(
            [feed.wanted + first for feed, first in zip(self.feeds, starts, strict=False)]
        )
        self.places = [w.walk.places[f.targets] for w, f in zip(writings, self.feeds, strict=True)]
        self.counts = [len(places) for places in self.places]
        ends = np.cumsum([0, *self.counts]).tolist()
        self.spans = [slice(first, end) for first, end in pairwise(ends)]
        self.groups = list(_groups(writings, self.feeds, starts.tolist()))

    def each(self, values: list[Any]) -> np.ndarray:
        """One value for each text, repeated for each of its logits."""
        return np.repeat(values, self.counts)


def _groups(writings: list[Writing], feeds: list[Feed], starts: list[int]) -> Iterator[Group]:
    """Neighbours that feed alike, together."""
    found: Group | None = None
    for writing, feed, token in zip(writings, feeds, starts, strict=False):
        width, wanted = len(feed.cells), len(feed.wanted)
        is_last = np.array_equal(feed.wanted, np.arange(width - wanted, width))
        alike = (feed.start, width, feed.sight, wanted if is_last else None)
        if found is not None:
            others = (found.start, found.width, found.sight, found.wanted)
            if alike == others and writing.row == found.row + found.count:
                found = replace(found, count=found.count + 1)
                continue
            yield found
        found = Group(writing.row, 1, token, *alike)
    if found is not None:
        yield found


class Batch:
    """Texts that are written together. rows: how many at most; slots: tokens of each, at most."""

    def __init__(self, network: Any, rows: int, slots: int, use_cache: bool = True) -> None:
        self.network, self.slots, self.use_cache = packed(network), slots, use_cache
        self.mask_id = network.config.mask_token_id
        self._cache = SlotCache(network.config, rows, slots, network.dtype, network.device)
        self._tokens = torch.full((rows, slots), self.mask_id, device=network.device)
        self._positions = torch.zeros_like(self._tokens)
        self._rows: list[Writing | None] = [None] * rows

    @property
    def free_rows(self) -> int:
        return self._rows.count(None)

    @property
    def num_bytes(self) -> int:
        """Of the cache."""
        return self._cache.num_bytes

    def add(self, request: TextRequest) -> Writing:
        """Raises ValueError if this cannot be written, RuntimeError if no row is free."""
        return self.enter(Writing(request, self.network.config, self.use_cache))

    def enter(self, writing: Writing) -> Writing:
        """Gives it a row. Raises ValueError or RuntimeError if there is none for it."""
        if writing.slots > self.slots:
            raise ValueError(f"{writing.slots} slots are due, and a row has {self.slots}")
        if None not in self._rows:
            raise RuntimeError("no row is free")
        writing.row = self._rows.index(None)
        self._rows[writing.row] = writing
        cells = np.full(self.slots, self.mask_id)
        cells[: len(writing.walk.front)] = writing.walk.front
        cells[writing.walk.cells] = writing.given
        self._tokens[writing.row] = self._tensor(cells)
        self._place(writing)
        return writing

    def remove(self, writing: Writing) -> None:
        """Its row is free again; what it has written is lost."""
        self._rows[writing.row] = None
        writing.row = -1

    def tokens(self, writing: Writing) -> np.ndarray:
        """int64 [L], in the order of the text; the mask id where nothing is written."""
        return self._tokens[writing.row].cpu().numpy()[writing.walk.cells]

    @torch.inference_mode()
    def step(self) -> list[Writing]:
        """One pass for every text that is not done. Returns these."""
        writings = [each for each in self._rows if each is not None and not each.is_done]
        if not writings:
            return []
        one = Pass(writings, self.slots)
        logits = self._logits(one)
        drawn = self._draw(one, logits)
        kept = list(self._kept(one, logits, drawn))
        cells = [
            writing.wrote(feed, places, some) + writing.row * self.slots
            for writing, feed, places, some in zip(
                writings, one.feeds, one.places, kept, strict=True
            )
        ]
        self._write(one, drawn, kept, np.concatenate(cells))
        for writing, feed in zip(writings, one.feeds, strict=True):
            if feed.keep is not None:
                self._place(writing)
            if writing.is_read:
                writing.look_for_the_end(self.tokens(writing), self.mask_id)
        return writings

    def _draw(self, one: Pass, logits: Tensor) -> Tensor:
        """int64 [M], of those texts that do not guess."""
        uniforms = [w.uniforms[p] for w, p in zip(one.writings, one.places, strict=True)]
        given = logits, self._rules(one), self._tensor(np.concatenate(uniforms))
        guessing = [feed.told is not None for feed in one.feeds]
        if not any(guessing):
            return draw(*given)
        drawn = logits.new_zeros(len(logits), dtype=torch.int64)
        others = self._tensor((~one.each(guessing)).nonzero()[0])
        drawn[others] = draw(*(each[others] for each in given))
        return drawn

    def _kept(self, one: Pass, logits: Tensor, drawn: Tensor) -> Iterator[np.ndarray | None]:
        """Which of its tokens each text keeps, in order; None: all. Those that guess draw here."""
        for writing, feed, places, span in zip(
            one.writings, one.feeds, one.places, one.spans, strict=True
        ):
            if feed.told is not None:
                uniforms = self._tensor(writing.uniforms[places, 0])
                tokens = writing.guesses.settle(logits[span], places.tolist(), uniforms)
                drawn[span][: len(tokens)] = torch.tensor(tokens, device=drawn.device)
                yield np.arange(len(tokens))
            elif feed.keep is not None:
                yield _most_certain(logits[span], drawn[span], feed.keep)
            else:
                yield None

    def _logits(self, one: Pass) -> Tensor:
        """[M, V], at least float32, of what is wanted; what must not be drawn is -inf."""
        fed = self._tensor(one.cells)
        tokens = self._tokens.view(-1)[fed]
        told = (one.told >= 0).nonzero()[0]
        if len(told):
            tokens[self._tensor(told)] = self._tensor(one.told[told])
        logits = self.network.decode(
            tokens,
            self._positions.view(-1)[fed],
            CachedRows(self._cache, one.groups),
            self._tensor(one.wanted),
        )
        for writing, places, span in zip(one.writings, one.places, one.spans, strict=True):
            early = span.start + writing.is_too_early(places).nonzero()[0]
            if len(early):
                logits[self._tensor(early)[:, None], list(writing.request.eos)] = -torch.inf
        return logits

    def _rules(self, one: Pass) -> Rules:
        requests = [writing.request for writing in one.writings]
        return Rules(
            self._tensor(one.each([float(request.temperature) for request in requests])),
            self._tensor(one.each([float(request.top_p) for request in requests])),
            self._tensor(one.each([int(request.top_k) for request in requests])),
        )

    def _write(
        self, one: Pass, drawn: Tensor, kept: list[np.ndarray | None], cells: np.ndarray
    ) -> None:
        """What was drawn and kept goes into the cells."""
        if any(some is not None for some in kept):
            index = [
                span.start + (np.arange(span.stop - span.start) if some is None else some)
                for span, some in zip(one.spans, kept, strict=True)
            ]
            drawn = drawn[self._tensor(np.concatenate(index))]
        self._tokens.view(-1)[self._tensor(cells)] = drawn

    def _place(self, writing: Writing) -> None:
        positions = writing.walk.positions
        self._positions[writing.row, : len(positions)] = self._tensor(positions)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.network.device, non_blocking=True)


def _most_certain(logits: Tensor, drawn: Tensor, count: int) -> np.ndarray:
    """Which of the drawn tokens [M] have the highest probability, in order."""
    # All other tokens' weight beside its own: in this form the surest differ, too.
    others = (logits - logits.gather(1, drawn[:, None])).exp_().scatter_(1, drawn[:, None], 0.0)
    # Masks alone are all alike: of equals the first one is taken, not the one of a lucky rounding.
    doubt = (others.sum(-1, dtype=torch.float64).log() * 1000).round()
    best = doubt.argsort(stable=True)[:count]
    return best.sort().values.cpu().numpy()
