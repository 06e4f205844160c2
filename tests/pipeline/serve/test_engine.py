"""The engine by itself: a pass that fails, blocks that do not divide the longest text."""

import queue
from typing import Any

import pytest

from esolm.pipeline.export.bundle.requests_esolm import TextRequest
from esolm.pipeline.export.bundle.writing_esolm import Writing
from esolm.pipeline.serve.engine import (
    DecodingEngine,
    DrainingError,
    Event,
    Failed,
    Finished,
    QueueFullError,
)
from tests.pipeline.generate.systems import MASK_ID, System


def text(model: Any, length: int = 8, **options: Any) -> Writing:
    return Writing(TextRequest([MASK_ID] * length, **options), model.config, use_cache=True)


def outcome(events: "queue.Queue[Event]") -> Event:
    """The last event of a text."""
    while not isinstance(event := events.get(timeout=20), Finished | Failed):
        pass
    return event


def test_a_pass_that_fails_takes_only_its_own_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = System("esolm_b").model
    engine = DecodingEngine(model, rows=2, slots=20, queue=4, seconds=60)
    decode = model.model.decode

    def fails(*arguments: Any) -> Any:
        raise MemoryError("not enough")

    monkeypatch.setattr(model.model, "decode", fails)
    first: queue.Queue[Event] = queue.Queue()
    engine.submit([text(model), text(model, seed=1)], [first.put, first.put])
    assert outcome(first) == outcome(first) == Failed(500, "a forward pass failed: not enough")
    assert engine.wait_until_idle(5)
    monkeypatch.setattr(model.model, "decode", decode)
    second: queue.Queue[Event] = queue.Queue()
    engine.submit([text(model, seed=5)], [second.put])
    finished = outcome(second)
    assert isinstance(finished, Finished)
    assert MASK_ID not in finished.ids
    engine.close()


def test_what_does_not_fit_a_row_does_not_end_the_engine() -> None:
    model = System("esolm_b").model
    engine = DecodingEngine(model, rows=1, slots=8, queue=4, seconds=60)
    events: queue.Queue[Event] = queue.Queue()
    engine.submit([text(model, length=9)], [events.put])
    assert outcome(events) == Failed(500, "a forward pass failed: 9 slots are due, and a row has 8")
    engine.submit([text(model)], [events.put])
    assert isinstance(outcome(events), Finished)
    engine.close()


def test_all_or_none_of_a_request_and_the_end() -> None:
    model = System("esolm_b").model
    engine = DecodingEngine(model, rows=1, slots=20, queue=1, seconds=60)
    with pytest.raises(QueueFullError):
        engine.submit([text(model)] * 3, [print] * 3)
    assert engine.num_waiting == engine.num_running == 0
    engine.drain()
    with pytest.raises(DrainingError):
        engine.submit([text(model)], [print])
    engine.close()
