# mypy: ignore-errors
"""The decoder of every network: a batch of texts, each at its own point, one pass at a time.

Texts enter and leave between passes, and differ in length, prompt, schedule and phase. What is
written in one does not depend on the others. `generate`, the server and the evaluation use this.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cells_esolm import Cells
from .copies_esolm import in_one_copy
from .graphs_esolm import Runner
from .linears_esolm import packed
from .passes_esolm import Pass
from .rectangle_esolm import Shape, laid_out, shape_of
from .requests_esolm import TextRequest
from .sampling_esolm import Numbers, Rules, draw
from .writing_esolm import Writing


class Batch:
    """Texts that are written together. rows: how many at most; slots: tokens of each, at most."""

    def __init__(
        self, network: Any, rows: int, slots: int, use_cache: bool = True,
        rectangles: bool | None = None, cuda_graphs: bool = True,
    ) -> None:  # fmt: skip
        """rectangles: whether passes are filled up to these; None: where there is a GPU.

        cuda_graphs: whether those that come often become graphs there.
        """
        self.network, self.slots, self.use_cache = packed(network), slots, use_cache
        self.mask_id = network.config.mask_token_id
        self._device = network.device
        self._cells = Cells(self.network, rows, slots)
        self._rows: list[Writing | None] = [None] * rows
        self._rectangles = self._device.type != "cpu" if rectangles is None else rectangles
        self._run = Runner(self._cells.in_rectangle, self._device, cuda_graphs)

    @property
    def free_rows(self) -> int:
        return self._rows.count(None)

    @property
    def num_bytes(self) -> int:
        """Of the cache."""
        return self._cells.cache.num_bytes

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
        self._cells.tokens[self._span(writing.row)] = self._tensors(cells)[0]
        self._place(writing)
        return writing

    def remove(self, writing: Writing) -> None:
        """Its row is free again; what it has written is lost."""
        self._rows[writing.row] = None
        writing.row = -1

    def tokens(self, writing: Writing) -> np.ndarray:
        """int64 [L], in the order of the text; the mask id where nothing is written."""
        return self._cells.tokens[self._span(writing.row)].cpu().numpy()[writing.walk.cells]

    @torch.inference_mode()
    def step(self) -> list[Writing]:
        """One pass for every text that is not done. Returns these."""
        writings = [each for each in self._rows if each is not None and not each.is_done]
        if not writings:
            return []
        one = Pass(writings, self.slots)
        cache = self._cells.cache
        shape = shape_of(one, cache) if self._rectangles else None
        fed = one.in_a_row() if shape is None else laid_out(one, shape, cache.spare)
        fed, uniforms, targets, forbidden, *numbers = in_one_copy(
            [fed, one.uniforms, one.targets, one.forbidden, *one.numbers], self._device
        )
        logits = self.network.logits_of(self._hidden(one, shape, fed))
        if one.forbidden.size:
            logits[forbidden[0], forbidden[1]] = -torch.inf
        drawn = self._draw(one, logits, Rules(one.numbers, Numbers(*numbers)), uniforms)
        kept = list(self._kept(one, logits, drawn, uniforms))
        cells = [
            writing.wrote(feed, places, some) + writing.row * self.slots
            for writing, feed, places, some in zip(
                writings, one.feeds, one.places, kept, strict=True
            )
        ]
        if any(some is not None for some in kept):
            index, targets = self._tensors(one.index_of(kept), np.concatenate(cells))
            drawn = drawn[index]
        self._cells.tokens[targets] = drawn
        for writing, feed in zip(writings, one.feeds, strict=True):
            if feed.keep is not None:
                self._place(writing)
            if writing.is_read:
                writing.look_for_the_end(self.tokens(writing), self.mask_id)
        return writings

    def _hidden(self, one: Pass, shape: Shape | None, fed: Tensor) -> Tensor:
        """[M, D], of what is wanted. fed: as it was laid out."""
        count = sum(one.counts)
        if shape is None:
            return self._cells.in_groups(one.groups(), count, fed)
        return self._run(shape, fed)[:count]

    def _draw(self, one: Pass, logits: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
        """int64 [M], of those texts that do not guess."""
        guessing = [feed.told is not None for feed in one.feeds]
        if not any(guessing):
            return draw(logits, rules, uniforms)
        drawn = logits.new_zeros(len(logits), dtype=torch.int64)
        others = (~one.each(guessing)).nonzero()[0]
        (there,) = self._tensors(others)
        drawn[there] = draw(logits[there], rules.of(others, there), uniforms[there])
        return drawn

    def _kept(
        self, one: Pass, logits: Tensor, drawn: Tensor, uniforms: Tensor
    ) -> Iterator[np.ndarray | None]:
        """Which of its tokens each text keeps, in order; None: all. Those that guess draw here."""
        for writing, feed, places, span in zip(
            one.writings, one.feeds, one.places, one.spans, strict=True
        ):
            if feed.told is not None:
                tokens = writing.guesses.settle(logits[span], places.tolist(), uniforms[span, 0])
                drawn[span][: len(tokens)] = torch.tensor(tokens, device=drawn.device)
                yield np.arange(len(tokens))
            elif feed.keep is not None:
                yield _most_certain(logits[span], drawn[span], feed.keep)
            else:
                yield None

    def _place(self, writing: Writing) -> None:
        positions = writing.walk.positions
        self._cells.positions[self._span(writing.row, len(positions))] = self._tensors(positions)[0]

    def _span(self, row: int, count: int | None = None) -> slice:
        """The cells of a row, all or the first so many."""
        first = row * self.slots
        return slice(first, first + (self.slots if count is None else count))

    def _tensors(self, *values: np.ndarray) -> list[Tensor]:
        return in_one_copy(list(values), self._device)


def _most_certain(logits: Tensor, drawn: Tensor, count: int) -> np.ndarray:
    """Which of the drawn tokens [M] have the highest probability, in order."""
    # All other tokens' weight beside its own: in this form the surest differ, too.
    others = (logits - logits.gather(1, drawn[:, None])).exp_().scatter_(1, drawn[:, None], 0.0)
    # Masks alone are all alike: of equals the first one is taken, not the one of a lucky rounding.
    doubt = (others.sum(-1, dtype=torch.float64).log() * 1000).round()
    best = doubt.argsort(stable=True)[:count]
    return best.sort().values.cpu().numpy()
