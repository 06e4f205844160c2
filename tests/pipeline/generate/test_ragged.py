"""Texts of every kind that enter and leave one batch are written as if each were alone."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from esolm.pipeline.export.bundle.decoding_esolm import Batch
from esolm.pipeline.export.bundle.planning_esolm import SCHEDULES
from esolm.pipeline.export.bundle.prompts_esolm import stop_at
from esolm.pipeline.export.bundle.requests_esolm import TextRequest
from tests.pipeline.generate.systems import MASK_ID, OBJECTIVES, System

LENGTH = 24
SLOTS = LENGTH + 1 + 3
# What each id is in a text: of one letter or two, so that a stop string may begin within a token.
PIECES = ("a", "b", "c", "ab", "ba", "ca", "bc", "d", "da", "ad", "?")


class Letters:
    """As much of a tokenizer as stop strings need."""

    def decode(self, ids: list[int]) -> str:
        return "".join(PIECES[each] for each in ids)


@cache
def network(name: str, dtype: torch.dtype) -> Any:
    return System(name, dtype).model


def some_request(name: str, draws: np.random.Generator) -> TextRequest:
    """Another length, prompt, gaps, schedule, sampler, seed and end each time."""
    length = 4 * int(draws.integers(1, LENGTH // 4 + 1))
    tokens = draws.integers(MASK_ID, size=length)
    if name in ("esolm_a", "esolm_b", "mdlm"):
        tokens[draws.random(length) < draws.choice([0.3, 0.9, 1.0])] = MASK_ID
    else:
        tokens[int(draws.integers(1, length + 1)) :] = MASK_ID
    stop = "".join(draws.choice(list("abcd"), size=draws.integers(3)))
    return TextRequest(
        tokens=tokens,
        alpha_0=float(draws.choice([0.0, 0.3, 0.7, 1.0])),
        num_steps=int(draws.integers(1, 9)),
        schedule=str(draws.choice(SCHEDULES)),
        temperature=float(draws.choice([0.0, 0.7, 1.0, 1.3])),
        top_p=float(draws.choice([0.5, 0.9, 1.0])),
        top_k=int(draws.choice([0, 0, 3])),
        seed=int(draws.integers(1000)),
        sample=int(draws.integers(3)),
        eos=(0,) if draws.random() < 0.3 else (),
        min_new=int(draws.integers(4)),
        stop=stop_at(Letters(), stop, int((tokens == MASK_ID).argmax())),
        guesses=int(draws.integers(4)) if name == "esolm_b" else 0,
        adaptive=bool(draws.integers(2)),
    )


Written = tuple[list[int], list[list[int]], int | None]


def what(batch: Batch, writing: Any) -> Written:
    """The tokens, the places of each pass, and where the text has ended before its length."""
    passes = [places.tolist() for places in writing.history]
    return batch.tokens(writing).tolist(), passes, writing.ends_at


def alone(model: Any, request: TextRequest, use_cache: bool = True) -> Written:
    batch = Batch(model, 1, SLOTS, use_cache)
    writing = batch.add(request)
    while batch.step():
        pass
    return what(batch, writing)


def together(
    batch: Batch, requests: list[TextRequest], draws: np.random.Generator
) -> list[Written]:
    """Each enters when a row is free and chance wills it, and leaves when it is done."""
    waiting, found = list(enumerate(requests)), {}
    running: dict[int, Any] = {}
    while waiting or running:
        while waiting and batch.free_rows and (not running or draws.random() < 0.5):
            number, request = waiting.pop(0)
            running[number] = batch.add(request)
        batch.step()
        for number, writing in list(running.items()):
            if writing.is_done:
                found[number] = what(batch, writing)
                batch.remove(running.pop(number))
    return [found[number] for number in range(len(requests))]


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize(
    ("seed", "num_batches"),
    [
        (0, 10),
        pytest.param(2, 20, marks=pytest.mark.check),
        pytest.param(1, 100, marks=pytest.mark.slow),
    ],
)
def test_ragged_equals_alone_equals_uncached(name: str, seed: int, num_batches: int) -> None:
    """In fp32. Of some texts a stop string is the end."""
    model, draws, stopped = network(name, torch.float32), np.random.default_rng(seed), 0
    for _ in range(num_batches):
        requests = [some_request(name, draws) for _ in range(int(draws.integers(2, 7)))]
        found = together(Batch(model, int(draws.integers(1, 5)), SLOTS), requests, draws)
        for request, written in zip(requests, found, strict=True):
            assert written == alone(model, request)
            assert written == alone(model, request, use_cache=False)
            stopped += request.stop is not None and not request.eos and written[2] is not None
    assert stopped >= num_batches // 10


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_what_is_given_is_never_changed(name: str) -> None:
    model, draws = network(name, torch.float64), np.random.default_rng(1)
    for _ in range(30):
        request = some_request(name, draws)
        tokens, passes, _ = alone(model, request)
        given = np.asarray(request.tokens) != MASK_ID
        assert (np.asarray(tokens)[given] == np.asarray(request.tokens)[given]).all()
        written = sorted(place for places in passes for place in places)
        assert set(written).isdisjoint(given.nonzero()[0].tolist())
        if not request.eos and request.stop is None:
            assert written == (~given).nonzero()[0].tolist()


def test_a_gap_before_what_is_given_is_refused_where_it_would_not_be_seen() -> None:
    tokens = [1, MASK_ID, 2, 3, 4, MASK_ID, MASK_ID, 5]
    for name in ("ar", "bd3lm"):
        with pytest.raises(ValueError, match="place 1 would not know of what is given at 7"):
            alone(network(name, torch.float64), TextRequest(tokens))
    within_a_block = [1, MASK_ID, 2, 3, MASK_ID, MASK_ID, MASK_ID, 5]
    with pytest.raises(ValueError, match="place 1 would not know"):
        alone(network("bd3lm", torch.float64), TextRequest(within_a_block))
    last_block = [1, 2, 2, 3, MASK_ID, MASK_ID, MASK_ID, 5]
    assert alone(network("bd3lm", torch.float64), TextRequest(last_block))[0][-1] == 5


def test_only_networks_that_see_all_in_order_take_guesses() -> None:
    for name in ("esolm_a", "mdlm", "bd3lm", "ar"):
        with pytest.raises(ValueError, match="takes no guesses"):
            alone(
                network(name, torch.float64), TextRequest([1, MASK_ID, MASK_ID, MASK_ID], guesses=2)
            )


def test_the_batch_says_what_it_has_no_room_for() -> None:
    batch = Batch(network("esolm_b", torch.float64), 1, 8)
    with pytest.raises(ValueError, match="9 slots are due, and a row has 8"):
        batch.add(TextRequest([MASK_ID] * 9))
    writing = batch.add(TextRequest([MASK_ID] * 8))
    with pytest.raises(RuntimeError, match="no row is free"):
        batch.add(TextRequest([MASK_ID]))
    batch.remove(writing)
    assert batch.free_rows == 1
    assert batch.step() == []
