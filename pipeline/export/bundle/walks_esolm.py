# mypy: ignore-errors
"""How each kind of network writes a text: what every pass feeds, and what it writes.

A walk keeps a text in *cells*: its tokens in the order in which the network's cache holds them. The
contract: `plan_for` lays down before the first pass what is written when; `feed` says what the next
pass feeds; `wrote` takes note that it was made. A walk knows nothing of batches and devices.

To add one of your own, write it in a file of this folder and of `CODE_FILES` in `export/writer.py`;
put it into WALKS under what `EsoLMConfig.trained_as` says of its networks; and name it so in
`decoding` of its objective's entry in the registry. This one writes all tokens in a single pass:

```python
import numpy as np

from .attention_esolm import Sight
from .planning_esolm import WritingPlan
from .walks_esolm import WALKS, Feed, Walk


class AtOnce(Walk):
    has_cache = False

    @classmethod
    def plan_for(cls, config, free, request):
        return WritingPlan(free, [len(free)], 1)

    def feed(self):
        cells = self.cells[self.plan.places]
        return Feed(0, np.arange(len(self.places)), Sight("bidirectional"), cells, cells)


WALKS["at_once"] = AtOnce
```
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .attention_esolm import BLOCK_CAUSAL, GUESSED, Sight
from .planning_esolm import WritingPlan, plan_blocks, plan_two_phases


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


class TwoPhases(Walk):
    """Eso-LM (arXiv 2506.01928, section 5): cells in the order of writing, what is given in front.

    Variant B: attention is causal along that order, so what a pass computes of written tokens stays
    valid. A pass feeds [what the last one wrote | its own masks].
    """

    can_guess = True
    fills_gaps = True

    @classmethod
    def plan_for(cls, config: Any, free: np.ndarray, request: Any) -> WritingPlan:
        return plan_two_phases(
            free, request.alpha_0, request.num_steps, request.schedule, request.seed, request.sample
        )

    def lay_out(self, given: np.ndarray) -> np.ndarray:
        return np.concatenate([given.nonzero()[0], self.plan.places])

    def feed(self) -> Feed:
        end = len(self.places) if self.chooses else self.written + self.count
        targets = np.arange(self.written, end)
        return Feed(
            start=self.cached,
            cells=np.arange(self.cached, end),
            sight=self.sight(),
            wanted=targets - self.cached,
            targets=targets,
            keep=self.count if self.chooses else None,
        )

    def feed_ahead(self, guesses: list[int], ahead: int) -> Feed:
        """A pass of the sequential phase that checks guesses and makes others; see there."""
        certain = np.arange(self.cached, self.written)
        targets = np.arange(self.written, len(self.places))[: len(guesses) + 1 + ahead]
        front = len(certain) + len(guesses)
        mask_id = self.config.mask_token_id
        return Feed(
            start=self.cached,
            cells=np.concatenate([certain, targets[: len(guesses)], targets]),
            sight=Sight(GUESSED, self.written + len(guesses), len(guesses)),
            wanted=front + np.arange(len(targets)),
            targets=targets,
            told=np.array([-1] * len(certain) + guesses + [mask_id] * len(targets)),
        )

    def wrote_ahead(self, count: int) -> np.ndarray:
        """Such a pass was made and wrote so many tokens, the last of which it did not feed."""
        cells = np.arange(self.written, self.written + count)
        self.keep_slots(self.written + count - 1)
        self.written += count
        self.number += 1
        return cells

    def sight(self) -> Sight:
        return Sight("causal")

    def wrote(self, feed: Feed, kept: np.ndarray | None) -> np.ndarray:
        if kept is not None:
            self._put_first(kept)
        self.keep_slots(self.written)
        cells = super().wrote(feed, kept)
        return cells if kept is None else feed.targets[: len(kept)]

    def _put_first(self, kept: np.ndarray) -> None:
        """What was kept comes before what was not; after the last choice all is in order."""
        free = self.places[self.written :]
        others = np.delete(free, kept)
        is_last = self.number + 1 == self.plan.num_diffusion
        free[:] = np.concatenate([free[kept], np.sort(others) if is_last else others])


class TwoPhasesBehindPrefix(TwoPhases):
    """Variant A: the tokens of the diffusion phase see each other.

    Each written token changes what the others have computed, so they are fed anew in every pass of
    that phase, and once more behind it. What is given is among them, but at alpha_0 = 0 nothing is:
    a network without a diffusion phase has only ever read from left to right.
    """

    can_guess = False

    def __init__(self, config: Any, given: np.ndarray, plan: WritingPlan, use_cache: bool) -> None:
        super().__init__(config, given, plan, use_cache)
        self._prefix = self.written if plan.has_diffusion else 0

    def sight(self) -> Sight:
        # Tokens behind the prefix see what stands before them.
        return Sight("causal") if self.cached else Sight("prefix", self._prefix)

    def wrote(self, feed: Feed, kept: np.ndarray | None) -> np.ndarray:
        is_diffusion = self.is_diffusing
        cells = super().wrote(feed, kept)
        if is_diffusion:
            self._prefix = self.written
            self.keep_slots(0)
        return cells


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


WALKS = {
    "esolm A": TwoPhasesBehindPrefix,
    "esolm B": TwoPhases,
    "ar": LeftToRight,
    "mdlm": Whole,
    "bd3lm": Blocks,
}
"""By `EsoLMConfig.trained_as`."""
