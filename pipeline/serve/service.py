"""What the routes share: the bundle, its engine, and how a request becomes texts to be written."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from esolm.data_prep.tokenizers import Tokenizer
from esolm.pipeline.export.bundle.requests_esolm import TextRequest
from esolm.pipeline.export.bundle.writing_esolm import Writing
from esolm.pipeline.generate import Bundle
from esolm.pipeline.serve.engine import (
    DecodingEngine,
    DrainingError,
    Event,
    Failed,
    Finished,
    QueueFullError,
)
from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.likelihoods import Likelihoods
from esolm.pipeline.serve.metrics import Metrics
from esolm.pipeline.serve.schemas import MAX_GUESSES, Sampling, asked

RETRY_SECONDS = 1
Result = TypeVar("Result")
# No tokenizer has pieces longer than this on average, and texts are tokenised while others wait.
CHARACTERS_PER_TOKEN = 256


@dataclass(frozen=True)
class Limits:
    """rows: texts at a time. queue: how many may wait. max_length: the most tokens of one text.

    max_length: None for the tokens of training. seconds: the most of a request.
    """

    rows: int = 16
    queue: int = 64
    max_length: int | None = None
    seconds: float = 300.0


@dataclass(frozen=True)
class Text:
    """One to be written. tokens: ids, the mask id where something is to be written."""

    tokens: list[int]
    sample: int = 0
    eos: tuple[int, ...] = ()
    min_new: int = 0
    stop: Any = None


class Service:
    """A bundle that is served. name: as clients see it."""

    def __init__(self, bundle: Bundle, name: str, limits: Limits) -> None:
        """Raises ApiError if the bundle has no tokenizer."""
        self.bundle, self.name, self.limits = bundle, name, limits
        self.config, self._created = bundle.model.config, int(time.time())
        self.max_length: int = limits.max_length or self.config.seq_len
        block = self.config.block_size or 1  # of which a text has a whole number
        slots = -(-self.max_length // block) * block + 1 + MAX_GUESSES
        self.engine = DecodingEngine(bundle.model, limits.rows, slots, limits.queue, limits.seconds)
        self.metrics = Metrics(self.engine, name)
        # One thread: tokenizers of transformers do not bear to be used by several.
        self._aside = ThreadPoolExecutor(1, "preparing")
        self.likelihood = Likelihoods(bundle.model, limits.seconds).run
        self._num_scoring = 0

    async def aside(self, work: Callable[..., Result], *given: Any) -> Result:
        """Work that takes long for large requests, which nothing else shall wait for."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, work, *given)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """While a request asks for likelihoods alone. Raises ApiError if too many do."""
        if self.engine.is_draining:
            raise ending()
        if self._num_scoring > self.limits.queue:
            raise full()
        self._num_scoring += 1
        try:
            yield
        finally:
            self._num_scoring -= 1

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises ApiError if the bundle has none."""
        if self.bundle.tokenizer is None:
            raise ApiError(400, "this bundle carries no tokenizer: give token ids")
        return self.bundle.tokenizer

    def card(self) -> dict[str, Any]:
        """What is known of the network."""
        return {
            "id": self.name, "object": "model", "created": self._created, "owned_by": "esolm",
            "max_model_len": self.max_length, "objective": self.config.trained_as,
            "seq_len": self.config.seq_len, "defaults": self._defaults(),
        }  # fmt: skip

    def check_model(self, name: str | None) -> None:
        """Raises ApiError if a request asks for another network."""
        if name is not None and name != self.name:
            raise ApiError(404, f"there is no model '{name}' here, only '{self.name}'", "model")

    def ids(self, text: str, param: str) -> list[int]:
        """Tokens of a text. Its literal '<mask>' and the like are ordinary text."""
        if len(text) > CHARACTERS_PER_TOKEN * self.max_length:
            message = f"{param}: {len(text)} characters, and a text has {self.max_length} tokens"
            raise ApiError(400, f"{message} at most", param)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ApiError(400, f"{param}: no valid Unicode: {error.reason}", param) from None
        return list(self.tokenizer.encode(text))

    def check_ids(self, ids: list[int], param: str) -> None:
        """Raises ApiError for ids that no prompt may hold."""
        for token in ids:
            if token >= self.config.vocab_size:
                raise ApiError(
                    400,
                    f"{param}: {token} is outside of the vocabulary, 0 to "
                    f"{self.config.vocab_size - 1}",
                    param,
                )
            if token == self.config.mask_token_id:
                raise ApiError(400, f"{param}: {token} is the mask, which is no text", param)

    def check_length(self, tokens: int, param: str) -> None:
        """Raises ApiError if a text can never fit."""
        if tokens > self.max_length:
            message = f"{param}: {tokens} tokens in all, and a text has {self.max_length} at most"
            raise ApiError(400, message, param)

    def check_count(self, texts: int, param: str) -> None:
        """Raises ApiError for more texts than the server ever takes."""
        if texts > self.limits.rows + self.limits.queue:
            raise ApiError(400, f"{param}: {texts} texts at once are too many", param)

    def writings(self, request: Sampling, texts: list[Text], param: str) -> list[Writing]:
        """Raises ApiError if one cannot be written."""
        settings = {**self._defaults(), **asked(request)}
        seed = secrets.randbits(62) if request.seed is None else request.seed
        try:
            return [
                Writing(
                    TextRequest(
                        tokens=text.tokens, seed=seed, sample=text.sample, eos=text.eos,
                        min_new=text.min_new, stop=text.stop, **settings,
                    ),
                    self.config,
                    use_cache=True,
                )
                for text in texts
            ]  # fmt: skip
        except ValueError as error:
            raise ApiError(400, str(error), param) from None

    def _defaults(self) -> dict[str, Any]:
        given = self.bundle.model.generation_config
        names = ("alpha_0", "num_steps", "schedule", "temperature", "top_p", "top_k", "guesses",
                 "adaptive")  # fmt: skip
        return {name: getattr(given, name) for name in names}

    @contextmanager
    def begun(self, writings: list[Writing]) -> Iterator["Events"]:
        """Puts them into the engine; whoever leaves early takes them out again."""
        events = Events(len(writings))
        tells: list[Callable[[Event], None]] = [
            partial(events.put_from_thread, number) for number in range(len(writings))
        ]
        try:
            tickets = self.engine.submit(writings, tells)
        except QueueFullError:
            raise full() from None
        except DrainingError:
            raise ending() from None
        self.metrics.begun(writings)
        try:
            yield events
        finally:
            self.engine.cancel(tickets)
            self.metrics.ended(tickets, events.finished)


def full() -> ApiError:
    """The answer where no more can wait."""
    return ApiError(429, "the server is full; try again in a moment", retry_after=RETRY_SECONDS)


def ending() -> ApiError:
    """The answer of a server that drains."""
    return ApiError(503, "the server is shutting down", retry_after=10)


class Events:
    """What happens to the texts of one request, in the order in which it does."""

    def __init__(self, count: int) -> None:
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._open = count
        self.finished: list[Finished] = []

    def put_from_thread(self, number: int, event: Event) -> None:
        """number: of the text."""
        if not self._loop.is_closed():  # as it is when a second signal has ended the server
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Until all are finished. Raises ApiError when one fails."""
        while self._open:
            number, event = await self._queue.get()
            if isinstance(event, Failed):
                raise ApiError(event.status, event.message)
            if isinstance(event, Finished):
                self._open -= 1
                self.finished.append(event)
            yield number, event
