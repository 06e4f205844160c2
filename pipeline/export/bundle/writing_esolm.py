# mypy: ignore-errors
"""One text from its request to its end."""

from typing import Any

import numpy as np

from .guessing_esolm import Guesses
from .requests_esolm import TextRequest
from .sampling_esolm import TRIES, Stream, random_numbers
from .walk_esolm import Feed, Walk
from .walks_esolm import WALKS


class Writing:
    """A text on its way.

    history: the places that each pass has written, int64 arrays. ends_at: so many tokens are the
    text, if it has ended before its length. row: of the batch, -1 when it has left.
    """

    def __init__(self, request: TextRequest, config: Any, use_cache: bool) -> None:
        """Raises ValueError if this cannot be written."""
        self.request, self.given = request, request.check(config)
        is_given = self.given != config.mask_token_id
        free, walk = (~is_given).nonzero()[0], walk_of(config)
        self.walk = walk(config, is_given, walk.plan_for(config, free, request), use_cache)
        self.uniforms = random_numbers(request.seed, request.sample, Stream.TOKENS).random(
            (request.length, TRIES)
        )
        if request.guesses and not walk.can_guess:
            raise ValueError(f"a network trained as '{config.trained_as}' takes no guesses")
        self.guesses = Guesses(request) if request.guesses else None
        self.history: list[np.ndarray] = []
        self.ends_at: int | None = None
        self.row = -1
        self._is_given = is_given
        self._first_free = int(free[0]) if len(free) else request.length

    @property
    def given_places(self) -> np.ndarray:
        """Those that were written from the start."""
        return self._is_given.nonzero()[0]

    @property
    def is_done(self) -> bool:
        return self.walk.is_over or self.ends_at is not None

    @property
    def slots(self) -> int:
        """Slots of the cache that it needs."""
        return len(self.walk.places) + self.request.guesses

    @property
    def is_guessing(self) -> bool:
        """Whether the next pass checks guesses and makes others."""
        return self.guesses is not None and not self.walk.is_diffusing

    def feed(self) -> Feed:
        """What the next pass feeds."""
        if self.is_guessing:
            return self.walk.feed_ahead(self.guesses.tokens, self.guesses.ahead)
        return self.walk.feed()

    def wrote(self, feed: Feed, places: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
        """A pass was made. kept: which of its places it wrote. Returns the cells of these."""
        self.history.append(places if kept is None else places[kept])
        if feed.told is not None:
            return self.walk.wrote_ahead(len(kept))
        return self.walk.wrote(feed, kept)

    @property
    def is_read(self) -> bool:
        """Whether what is written decides where the text ends."""
        return bool(self.request.eos) or self.request.stop is not None

    def look_for_the_end(self, tokens: np.ndarray, mask_id: int) -> None:
        """tokens: int64 [L], as far as they are written."""
        gaps = (tokens == mask_id).nonzero()[0]
        whole = int(gaps[0]) if len(gaps) else len(tokens)
        ends = np.isin(tokens[:whole], self.request.eos) & ~self._is_given[:whole]
        if ends.any():
            whole = self.ends_at = int(ends.argmax()) + 1
        if self.request.stop is not None and whole > self._first_free:
            found = self.request.stop(tokens[:whole].tolist())
            self.ends_at = self.ends_at if found is None else found

    def is_too_early(self, places: np.ndarray) -> np.ndarray:
        """Bool: at which places the text must not end."""
        return places < (self._first_free + self.request.min_new if self.request.eos else 0)


def walk_of(config: Any) -> type[Walk]:
    """How a network writes. Raises ValueError if nobody knows."""
    if config.trained_as not in WALKS:
        raise ValueError(f"there is no decoder for networks trained as '{config.trained_as}'")
    return WALKS[config.trained_as]
