# mypy: ignore-errors
"""How an Eso-LM writes: by diffusion in any order, then from left to right."""

from typing import Any

import numpy as np

from .attention_esolm import GUESSED, Sight
from .planning_esolm import WritingPlan, plan_two_phases
from .walk_esolm import Feed, Walk


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
