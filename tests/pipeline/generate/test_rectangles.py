"""The form of a pass that GPUs take, on a CPU: what it writes, its shapes, that nothing waits."""

import gc
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esolm.pipeline.export.bundle import decoding_esolm, graphs_esolm, rectangle_esolm
from esolm.pipeline.export.bundle.attention_esolm import SlotCache
from esolm.pipeline.export.bundle.decoding_esolm import Batch
from esolm.pipeline.export.bundle.graphs_esolm import Runner
from esolm.pipeline.export.bundle.layers_esolm import rotary_angles
from esolm.pipeline.export.bundle.passes_esolm import Pass
from esolm.pipeline.export.bundle.rectangle_esolm import Shape, rounded, shape_of
from esolm.pipeline.export.bundle.requests_esolm import TextRequest
from esolm.pipeline.export.bundle.writing_esolm import Writing
from tests.pipeline.generate.recorded_graphs import RecordedGraphs, tensors
from tests.pipeline.generate.systems import MASK_ID, OBJECTIVES, System
from tests.pipeline.generate.test_ragged import SLOTS, alone, network, some_request, together

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> RecordedGraphs:
    """What stands here for CUDA graphs."""
    recorded = RecordedGraphs()
    monkeypatch.setattr(graphs_esolm, "capture_on", lambda _: recorded)
    return recorded


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_rectangles_and_their_graphs_write_what_each_text_writes_alone(
    name: str, graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32. In every second batch wide passes are none, so both forms share a cache."""
    model, draws = network(name, torch.float32), np.random.default_rng(2)
    for number in range(10):
        monkeypatch.setattr(rectangle_esolm, "MOST_TOKENS", 16 if number % 2 else 4096)
        requests = [some_request(name, draws) for _ in range(int(draws.integers(2, 7)))]
        batch = Batch(model, int(draws.integers(1, 5)), SLOTS, rectangles=True)
        found = together(batch, requests, draws)
        assert found == [alone(model, request) for request in requests]
    assert graphs.captures
    assert graphs.replays > graphs.captures


@pytest.mark.parametrize("rectangles", [True, False])
def test_a_cpu_takes_rectangles_only_if_told(
    rectangles: bool, graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[Shape | None] = []
    record_shapes(shapes, monkeypatch)
    batch = Batch(network("ar", torch.float32), 1, SLOTS, rectangles=rectangles or None)
    batch.add(TextRequest([1] + [MASK_ID] * 9))
    while batch.step():
        pass
    assert bool(shapes) is rectangles
    assert bool(graphs.captures) is rectangles


def test_graphs_can_be_switched_off(graphs: RecordedGraphs) -> None:
    model = network("esolm_b", torch.float32)
    for wanted in (True, False):
        batch = Batch(model, 1, SLOTS, rectangles=True, cuda_graphs=wanted)
        batch.add(TextRequest([MASK_ID] * 20, alpha_0=0.0))
        while batch.step():
            pass
        assert bool(graphs.captures) is wanted
        graphs.captures = 0


def test_a_batch_is_gone_when_nobody_has_it(graphs: RecordedGraphs) -> None:
    """At once: the next one needs its memory."""
    batch = Batch(network("esolm_b", torch.float32), 1, SLOTS, rectangles=True)
    batch.add(TextRequest([MASK_ID] * 20, alpha_0=0.0))
    while batch.step():
        pass
    assert graphs.replays
    seen = weakref.ref(batch._cells)
    gc.disable()
    try:
        del batch
        assert seen() is None
    finally:
        gc.enable()


class Transfers(TorchDispatchMode):
    """Which operations have tensors in two places, without single numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        places = {each.device for each in tensors((args, kwargs, result)) if each.dim()}
        if len(places) > 1:
            self.found.append((func, kwargs or {}))
        return result


@pytest.mark.parametrize("most", [4096, 8])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_host_waits_for_nothing(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that has no numbers, so that nobody can ask it for one.

    Passes of texts without an end of their own, guesses and confidence, whatever their samplers:
    one copy each, which is not waited for. In both forms.
    """
    monkeypatch.setattr(rectangle_esolm, "MOST_TOKENS", most)
    model, draws = System(name, torch.float32).model.to("meta"), np.random.default_rng(3)
    rotary_angles(torch.zeros(1, device=model.device), model.config)  # keeps its frequencies there
    plain = {"eos": (), "stop": None, "guesses": 0, "schedule": "binomial"}
    for _ in range(3):
        batch = Batch(model, 4, SLOTS)
        for _ in range(4):
            batch.add(replace(some_request(name, draws), **plain))
        while True:
            with Transfers() as transfers:
                if not batch.step():
                    break
            [(func, options)] = transfers.found
            assert func is torch.ops.aten.to.dtype_layout
            assert options["non_blocking"]


def test_a_device_without_numbers_tells_none() -> None:
    """So the test above sees it when somebody asks."""
    batch = Batch(System("esolm_b", torch.float32).model.to("meta"), 1, SLOTS)
    batch.add(TextRequest([MASK_ID] * 4, schedule="confidence"))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        batch.step()


def record_shapes(shapes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = decoding_esolm.shape_of

    def record(*arguments: Any) -> Shape | None:
        shapes.append(real(*arguments))
        return shapes[-1]

    monkeypatch.setattr(decoding_esolm, "shape_of", record)


def shapes_of_a_run(rows: int, most: int) -> list[Shape | None]:
    """Texts of up to `most` tokens that come and go, with other steps and guesses each."""
    config, draws = network("esolm_b", torch.float32).config, np.random.default_rng(5)
    cache = SlotCache(config, rows, most, torch.float32, torch.device("meta"))
    running: list[Writing] = []
    shapes, number = [], 0
    while number < 40:
        running = [writing for writing in running if not writing.is_done]
        while len(running) < rows:
            length, guesses = int(draws.integers(20, most - 4)), int(draws.choice([0, 0, 4]))
            request = TextRequest(
                [MASK_ID] * length, alpha_0=float(draws.choice([0.0, 0.5, 1.0])), sample=number,
                num_steps=int(draws.integers(4, 65)), guesses=guesses,
            )  # fmt: skip
            running.append(Writing(request, config, use_cache=True))
            running[-1].row = min(set(range(rows)) - {each.row for each in running[:-1]})
            number += 1
        one = Pass(running, most)
        shapes.append(shape_of(one, cache))
        for writing, feed, places in zip(running, one.feeds, one.places, strict=True):
            writing.wrote(feed, places, np.arange(1) if writing.is_guessing else None)
    return shapes


def test_a_long_run_has_few_shapes() -> None:
    """So that each is captured once, and hardly any pass runs before its shape is."""
    counts = Counter(shapes_of_a_run(rows=8, most=1000))
    assert counts.total() > 1000
    assert len(counts) < graphs_esolm.MOST_SHAPES
    eager = sum(min(count, graphs_esolm.RUNS_BEFORE) for count in counts.values())
    assert eager < 0.1 * counts.total()


def test_sizes_are_rounded_up() -> None:
    assert [rounded(size, 2000) for size in (1, 2, 3, 64, 65, 512, 513, 1025)] == [
        1, 2, 4, 64, 128, 512, 1024, 1536,
    ]  # fmt: skip
    assert rounded(1999, 2000) == 2000
    assert rounded(5, 6) == 6
    assert len({rounded(size, 4096) for size in range(1, 4097)}) == 17


def doubled(shape: int, inputs: Tensor) -> Tensor:
    return inputs[:shape] * 2


def test_the_shape_that_was_used_the_longest_ago_is_forgotten(
    graphs: RecordedGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_esolm, "MOST_SHAPES", 2)
    run = Runner(doubled, CPU, graphs=True)
    for number, shape in enumerate([1, 1, 1, 1, 2, 2, 2, 1, 3, 3, 3, 1, 2, 2]):
        inputs = torch.full((4,), float(number))
        assert run(shape, inputs).tolist() == [2.0 * number] * shape
    # Each at its third use, 2 was forgotten for 3 and has come twice since then.
    assert graphs.captures == 3
    run(2, torch.ones(4))
    assert graphs.captures == 4


def test_where_no_graph_can_be_made_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Any] = []

    def fail(run: Any) -> Any:
        attempts.append(run)
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("the capture had failed before its end")

    monkeypatch.setattr(graphs_esolm, "capture_on", lambda _: fail)
    run = Runner(doubled, CPU, graphs=True)
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted") as given:
        found = [run(1, torch.full((4,), float(number))).tolist() for number in range(6)]
    assert found == [[2.0 * number] for number in range(6)]
    assert len(given) == len(attempts) == 1


def test_only_a_gpu_has_graphs() -> None:
    assert graphs_esolm.capture_on(CPU) is None
    assert graphs_esolm.capture_on(torch.device("meta")) is None
