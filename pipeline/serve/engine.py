"""One thread that writes all texts of the server together; they enter and leave between passes."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esolm.pipeline.export.bundle.decoding_esolm import Batch
from esolm.pipeline.export.bundle.writing_esolm import Writing


@dataclass(frozen=True)
class PassDone:
    """What one pass has written of a text: ids at places. number: from 1 on."""

    number: int
    phase: str
    places: list[int]
    ids: list[int]


@dataclass(frozen=True)
class Finished:
    """ids: the text as far as it counts. reason: `length` or `stop`. passes: forward passes."""

    ids: list[int]
    reason: str
    passes: int


@dataclass(frozen=True)
class Failed:
    """status: of HTTP. message: for the user."""

    status: int
    message: str


Event = PassDone | Finished | Failed


class QueueFullError(Exception):
    """No more texts can wait."""


class DrainingError(Exception):
    """The server writes to the end what it has begun, and begins nothing."""


@dataclass(eq=False)
class Ticket:
    """A text in the engine. tell: is called with every event, by the engine's thread."""

    writing: Writing
    tell: Callable[[Event], None]
    deadline: float
    is_cancelled: bool = False
    entered: float = field(default_factory=time.monotonic)


class DecodingEngine:
    """rows: texts at a time. queue: how many may wait. seconds: the most that one may take."""

    def __init__(self, model: Any, rows: int, slots: int, queue: int, seconds: float) -> None:
        self.model, self.rows, self.slots = model, rows, slots
        self._queue, self._seconds = queue, seconds
        graphs = model.generation_config.cuda_graphs
        self._batch = Batch(model, rows, slots, cuda_graphs=graphs)
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._changed = threading.Condition()
        self._is_draining = self._is_over = False
        self.passes = 0
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def num_bytes(self) -> int:
        """Of the keys and values."""
        return int(self._batch.num_bytes)

    @property
    def num_running(self) -> int:
        """Texts that are being written."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a row."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread that writes is there."""
        return self._thread.is_alive()

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._is_draining

    def submit(self, writings: list[Writing], tells: list[Callable[[Event], None]]) -> list[Ticket]:
        """All of them or none. Raises QueueFullError or DrainingError."""
        deadline = time.monotonic() + self._seconds
        tickets = [Ticket(w, tell, deadline) for w, tell in zip(writings, tells, strict=True)]
        with self._changed:
            if self._is_draining:
                raise DrainingError
            free = self.rows - len(self._running)
            if len(self._waiting) + len(tickets) > self._queue + free:
                raise QueueFullError
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def cancel(self, tickets: list[Ticket]) -> None:
        """They leave before the next pass; nothing more is told of them."""
        with self._changed:
            for ticket in tickets:
                ticket.is_cancelled = True
            self._changed.notify()

    def drain(self) -> None:
        """Takes nothing more."""
        with self._changed:
            self._is_draining = True
            self._changed.notify()

    def wait_until_idle(self, seconds: float | None = None) -> bool:
        """Whether nothing is running or waiting any more after so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            with self._changed:  # between both, a text is in neither
                if not self._waiting and not self._running:
                    return True
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(0.01)

    def close(self) -> None:
        """Ends the thread; what is not finished is lost."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._is_over)
                if self._is_over:
                    return
                self._drop()
                self._admit()
            if self._running:
                self._step()

    def _drop(self) -> None:
        """Those that were cancelled or have had their time."""
        now = time.monotonic()
        for ticket in [*self._running, *self._waiting]:
            if ticket.is_cancelled:
                self._leave(ticket)
            elif now > ticket.deadline:
                self._leave(ticket, Failed(408, f"the text took longer than {self._seconds:g} s"))

    def _admit(self) -> None:
        """First come, first served."""
        while self._waiting and self._batch.free_rows:
            ticket = self._waiting.popleft()
            self._running.append(ticket)
            try:
                self._batch.enter(ticket.writing)
            except Exception as error:  # of whatever kind; the others go on
                self._fail([ticket], error)

    def _step(self) -> None:
        tickets = list(self._running)
        try:
            self._batch.step()
            # Reading waits for the device, so its errors may come up only here.
            texts = [self._batch.tokens(ticket.writing) for ticket in tickets]
        except Exception as error:  # of whatever kind: the server goes on, these texts do not
            with self._changed:
                self._fail(tickets, error)
            return
        self.passes += 1
        with self._changed:
            for ticket, tokens in zip(tickets, texts, strict=True):
                self._tell(ticket, tokens)

    def _fail(self, tickets: list[Ticket], error: Exception) -> None:
        """The trace goes where the server's own messages go, the message to the clients."""
        logging.getLogger("uvicorn.error").error("a forward pass failed", exc_info=error)
        for ticket in tickets:
            self._leave(ticket, Failed(500, f"a forward pass failed: {error}"))

    def _tell(self, ticket: Ticket, tokens: np.ndarray) -> None:
        """What the last pass did. A text that was complete from the start had none."""
        writing = ticket.writing
        number = len(writing.history)
        if number and not ticket.is_cancelled:
            places = writing.history[-1]
            is_diffusion = number <= writing.walk.plan.num_diffusion
            phase = "diffusion" if is_diffusion else "sequential"
            ticket.tell(PassDone(number, phase, places.tolist(), tokens[places].tolist()))
        if writing.is_done:
            end = len(tokens) if writing.ends_at is None else writing.ends_at
            reason = "length" if writing.ends_at is None else "stop"
            self._leave(ticket, Finished(tokens[:end].tolist(), reason, number))

    def _leave(self, ticket: Ticket, event: Event | None = None) -> None:
        for place in (self._running, self._waiting):
            if ticket in place:
                place.remove(ticket)
        if ticket.writing.row >= 0:
            self._batch.remove(ticket.writing)
        if event is not None and not ticket.is_cancelled:
            ticket.tell(event)
