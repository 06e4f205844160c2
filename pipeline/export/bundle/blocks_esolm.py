# mypy: ignore-errors
"""How the others write: token after token, block after block, or all of a text at once."""

from typing import Any

import numpy as np

from .attention_esolm import BLOCK_CAUSAL, Sight
from .planning_esolm import WritingPlan, plan_blocks
from .walk_esolm import Feed, Walk


class LeftToRight(Walk):
    """`ar`: each token is predicted from the one before it."""

    def __init__(self, config: Any, given: np.ndarray, plan: WritingPlan, use_cache: bool) -> None:
        super().__init__(config, given, plan, use_cache)
        if config.prepend_token_id is not None:
            self.front = (config.prepend_token_id,)
            self.places = np.concatenate([[-1], self.places])
            self.positions = np.arange(len(self.places))
            self.written += 1

    @classmethod
    def plan_for(cls, config: Any, free: np.ndarray, request: Any) -> WritingPlan:
        refuse_gaps(free, request.length, 1)
        return WritingPlan(free, [1] * len(free), 0)

    def feed(self) -> Feed:
        cells = np.arange(self.cached, self.written)
        return Feed(
            self.cached,
            cells,
            Sight("causal"),
            np.array([len(cells) - 1]),
            np.array([self.written]),
        )

    def wrote(self, feed: Feed, kept: np.ndarray | None) -> np.ndarray:
        self.keep_slots(self.written)
        return super().wrote(feed, kept)


class Blocks(Walk):
    """BD3-LM (arXiv 2503.09573, section 3): a block sees itself and the finished blocks before it.

    Their keys and values stay, so a pass feeds [in the first of a block, the block before it | the
    block].
    """

    def __init__(self, config: Any, given: np.ndarray, plan: WritingPlan, use_cache: bool) -> None:
        super().__init__(config, given, plan, use_cache)
        self._size = self.block_size(config, len(given))
        self._first = 0  # of the plan's places, what is not written yet

    @classmethod
    def block_size(cls, config: Any, length: int) -> int:
        if config.block_size is None:
            raise ValueError("this bundle does not say its block size: export the network again")
        return config.block_size

    @classmethod
    def plan_for(cls, config: Any, free: np.ndarray, request: Any) -> WritingPlan:
        size = cls.block_size(config, request.length)
        if request.length % size:
            raise ValueError(
                f"length is {request.length}; it must be a multiple of the block size {size}"
            )
        refuse_gaps(free, request.length, size)
        return plan_blocks(
            free, size, request.num_steps, request.schedule, request.seed, request.sample
        )

    def feed(self) -> Feed:
        left = self.plan.places[self._first :]
        begin = left[0] // self._size * self._size
        is_due = left < begin + self._size if self.chooses else slice(self.count)
        cells = np.arange(self.cached, begin + self._size)
        return Feed(
            start=self.cached,
            cells=cells,
            sight=self.sight(),
            wanted=left[is_due] - self.cached,
            targets=left[is_due],
            keep=self.count if self.chooses else None,
        )

    def sight(self) -> Sight:
        return Sight(BLOCK_CAUSAL, block_size=self._size)

    def wrote(self, feed: Feed, kept: np.ndarray | None) -> np.ndarray:
        left = self.plan.places[self._first :]
        if kept is not None:
            left[:] = np.concatenate([left[kept], np.delete(left, kept)])
        self.keep_slots(left[0] // self._size * self._size)
        self._first += self.count
        return super().wrote(feed, kept)


class Whole(Blocks):
    """MDLM (arXiv 2406.07524, section 4): all of the text is one block, and nothing can be kept."""

    has_cache = False
    fills_gaps = True

    @classmethod
    def block_size(cls, config: Any, length: int) -> int:
        return length

    def sight(self) -> Sight:
        return Sight("bidirectional")


def refuse_gaps(free: np.ndarray, length: int, block_size: int) -> None:
    """Raises ValueError if what is given stands in a later block than something free."""
    given = np.setdiff1d(np.arange(free[0], length), free) if len(free) else free
    if len(given) and given[-1] // block_size > free[0] // block_size:
        raise ValueError(
            f"this network writes from left to right, so place {free[0]} would not know of what is "
            f"given at {given[-1]}: give only what comes before the first gap"
        )
