# mypy: ignore-errors
"""One forward pass over several texts. All of it is known to the host before it begins."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from .attention_esolm import Group
from .sampling_esolm import Numbers
from .writing_esolm import Writing


class Pass:
    """Its texts, one after the other.

    widths: tokens that each text feeds; counts: how many of these give logits; spans: where its
    logits are. places: in the text, of what these are for; targets: the same, as row * slots +
    cell. uniforms: float64 [M, TRIES], and numbers: how each of the M tokens is drawn. forbidden:
    int64 [2, P], which logits, [m, id], must not be drawn.
    """

    def __init__(self, writings: list[Writing], slots: int) -> None:
        self.writings, self.slots = writings, slots
        self.feeds = [writing.feed() for writing in writings]
        self.widths = [len(feed.cells) for feed in self.feeds]
        self.places = [w.walk.places[f.targets] for w, f in zip(writings, self.feeds, strict=True)]
        self.counts = [len(places) for places in self.places]
        ends = np.cumsum([0, *self.counts]).tolist()
        self.spans = [slice(first, end) for first, end in pairwise(ends)]
        self.targets = self._of_all([feed.targets for feed in self.feeds])
        self.uniforms = np.concatenate(
            [w.uniforms[places] for w, places in zip(writings, self.places, strict=True)]
        )
        requests = [writing.request for writing in writings]
        self.numbers = Numbers(
            self.each([float(request.temperature) for request in requests]),
            self.each([float(request.top_p) for request in requests]),
            self.each([int(request.top_k) for request in requests]),
        )
        self.forbidden = self._forbidden()

    def each(self, values: list[Any]) -> np.ndarray:
        """One value for each text, repeated for each of its logits."""
        return np.repeat(values, self.counts)

    def index_of(self, kept: list[np.ndarray | None]) -> np.ndarray:
        """Which of the M tokens are kept. kept: which of each text's, None for all of them."""
        index = [
            span.start + (np.arange(count) if some is None else some)
            for span, count, some in zip(self.spans, self.counts, kept, strict=True)
        ]
        return np.concatenate(index)

    def in_a_row(self) -> np.ndarray:
        """What is fed, int64: [cells | told | wanted], each of all texts one after the other.

        cells: row * slots + cell; told: the ids of those that the cells do not hold, -1 of others;
        wanted: which of these tokens give logits.
        """
        cells = self._of_all([feed.cells for feed in self.feeds])
        told = [
            np.full(width, -1) if feed.told is None else feed.told
            for feed, width in zip(self.feeds, self.widths, strict=True)
        ]
        wanted = [
            feed.wanted + first for feed, first in zip(self.feeds, self._starts()[:-1], strict=True)
        ]
        return np.concatenate([cells, *told, *wanted])

    def groups(self) -> list[Group]:
        """Neighbours that feed alike, together."""
        return list(_groups(self.writings, self.feeds, self._starts()))

    def _starts(self) -> list[int]:
        """The first token of each text, and the number of all."""
        return np.cumsum([0, *self.widths]).tolist()

    def _of_all(self, cells: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [each + w.row * self.slots for each, w in zip(cells, self.writings, strict=True)]
        )

    def _forbidden(self) -> np.ndarray:
        """What would end a text too early."""
        pairs = [np.zeros((2, 0), dtype=np.int64)]
        for writing, places, span in zip(self.writings, self.places, self.spans, strict=True):
            early = span.start + writing.is_too_early(places).nonzero()[0]
            eos = np.array(writing.request.eos, dtype=np.int64)
            pairs.append(np.stack([np.repeat(early, len(eos)), np.tile(eos, len(early))]))
        return np.concatenate(pairs, axis=1)


def _groups(writings: list[Writing], feeds: list[Any], starts: list[int]) -> Iterator[Group]:
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
