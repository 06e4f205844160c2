# mypy: ignore-errors
"""A text on its way: what the next pass feeds, and what it has written. The kinds are in WALKS."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .attention_esolm import Sight
from .planning_esolm import WritingPlan


@dataclass(frozen=True)
class Feed:
    """What a text feeds to one pass.

    start: the slot that the first token goes to, the others follow. cells: int64 [w], which are
    read, masks where nothing is written. sight: which slots each sees. wanted: int64 [m], which of
    the w give logits; targets: int64 [m], the cells that these are for. keep: how many of them are
    written, the most certain ones; None: all. told: int64 [w], ids that are fed whatever the cells
    hold, -1 where it is what they hold; None: nowhere.
    """

    start: int
    cells: np.ndarray
    sight: Sight
    wanted: np.ndarray
    targets: np.ndarray
    keep: int | None = None
    told: np.ndarray | None = None


class Walk:
    """One text on its way.

    places: int64 [cells], the place in the text of each cell, -1 of a token in front of the text.
    positions: int64 [cells], as the network counts them. front: the tokens in front. number: passes
    made. written: cells that are written. cached: slots whose keys and values stay.
    """

    has_cache: ClassVar[bool] = True
    can_guess: ClassVar[bool] = False
    # Whether what is written knows of what is given behind it.
    fills_gaps: ClassVar[bool] = False
    front: tuple[int, ...] = ()

    def __init__(self, config: Any, given: np.ndarray, plan: WritingPlan, use_cache: bool) -> None:
        """given: bool [L], the places of the text that are written from the start."""
        self.config, self.plan = config, plan
        self.places = self.positions = self.lay_out(given)
        self.number = self.cached = 0
        self.written = int(given.sum())
        self._keeps = use_cache and self.has_cache

    @classmethod
    def plan_for(cls, config: Any, free: np.ndarray, request: Any) -> WritingPlan:
        """What is written when; free: int64 [F], places. Raises ValueError if that cannot be."""
        raise NotImplementedError

    def lay_out(self, given: np.ndarray) -> np.ndarray:
        """The place of each cell: as in the text, unless a walk says otherwise."""
        return np.arange(len(given))

    @property
    def is_over(self) -> bool:
        return self.written == len(self.places)

    @property
    def count(self) -> int:
        """Tokens that the next pass writes."""
        return self.plan.counts[self.number]

    @property
    def is_diffusing(self) -> bool:
        return self.number < self.plan.num_diffusion

    @property
    def chooses(self) -> bool:
        """Whether the next pass writes the most certain of its tokens."""
        return self.plan.by_confidence and self.is_diffusing

    @property
    def cells(self) -> np.ndarray:
        """int64 [L], the cell of each place of the text."""
        return self.places.argsort(kind="stable")[len(self.front) :]

    def feed(self) -> Feed:
        """What the next pass feeds."""
        raise NotImplementedError

    def wrote(self, feed: Feed, kept: np.ndarray | None) -> np.ndarray:
        """The pass was made. kept: which of its targets are written, if it had a choice.

        Returns the cells that they go to.
        """
        self.written += self.count
        self.number += 1
        return feed.targets if kept is None else feed.targets[kept]

    def keep_slots(self, count: int) -> None:
        """The keys and values of the first so many cells stay what they are."""
        self.cached = count if self._keeps else 0
