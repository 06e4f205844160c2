"""One thread that writes all texts of the server together; they enter and leave between passes."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
        self._batch = Batch(model, rows, slots)
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
        while self._waiting or self._running:
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

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
            try:
                self._turn()
            except Exception as error:  # of whatever kind: the server goes on, these texts do not
                logging.getLogger("uvicorn.error").error("a pass failed", exc_info=error)
                with self._changed:
                    for ticket in [*self._running, *self._waiting]:
                        self._leave(ticket, Failed(500, f"a forward pass failed: {error}"))

    def _turn(self) -> None:
        """Who leaves, who enters, and one pass for all who are there."""
        with self._changed:
            self._drop()
            self._admit()
        if self._running:
            self._batch.step()
            self.passes += 1
            with self._changed:
                for ticket in list(self._running):
                    self._tell(ticket)

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
            self._batch.enter(self._waiting[0].writing)
            self._running.append(self._waiting.popleft())

    def _tell(self, ticket: Ticket) -> None:
        """What the last pass did. A text that was complete from the start had none."""
        writing = ticket.writing
        tokens = self._batch.tokens(writing)
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
        if ticket in self._running:
            self._running.remove(ticket)
            self._batch.remove(ticket.writing)
        else:
            self._waiting.remove(ticket)
        if event is not None and not ticket.is_cancelled:
            ticket.tell(event)
