# mypy: ignore-errors
"""A function of a shape and its inputs, as one CUDA graph for each shape.

Inputs come from one buffer for each shape, with and without graphs, so that both run the same code.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

# Shapes that are remembered; of more the one that was used the longest ago is forgotten.
MOST_SHAPES = 64
# A shape is run so often as it comes before it is captured: it warms up, and rare ones never are.
RUNS_BEFORE = 2

# A process can make one graph at a time.
ONE_AT_A_TIME = threading.Lock()

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


@dataclass
class Program:
    """What runs for one shape. inputs: where it reads from. runs: how often it has run."""

    inputs: Tensor
    run: Callable[[], Tensor]
    runs: int = 0
    is_captured: bool = False


class Runner:
    """Calls `function(shape, inputs)`.

    Its result is valid until the next call, and it must be the same when it runs twice on the same
    inputs. graphs: whether shapes that come often are captured, where there is a GPU.
    """

    def __init__(
        self, function: Callable[[Any, Tensor], Tensor], device: torch.device, graphs: bool
    ) -> None:
        self._function = function
        self._capture = capture_on(device) if graphs else None
        self._programs: OrderedDict[Any, Program] = OrderedDict()

    def __call__(self, shape: Any, inputs: Tensor) -> Tensor:
        program = self._program(shape, inputs)
        program.inputs.copy_(inputs)
        if self._capture is not None and program.runs >= RUNS_BEFORE and not program.is_captured:
            self._make_graph(program)
        program.runs += 1
        return program.run()

    def _program(self, shape: Any, inputs: Tensor) -> Program:
        if shape not in self._programs:
            buffer = torch.empty_like(inputs)
            self._programs[shape] = Program(buffer, partial(self._function, shape, buffer))
            if len(self._programs) > MOST_SHAPES:
                self._programs.popitem(last=False)
        self._programs.move_to_end(shape)
        return self._programs[shape]

    def _make_graph(self, program: Program) -> None:
        try:
            program.run = self._capture(program.run)
        except RuntimeError as error:
            self._capture = None
            # The end of a capture that went wrong fails, too.
            reason = error.__context__ or error
            warnings.warn(f"decoding goes on without CUDA graphs: {reason}", stacklevel=2)
        else:
            program.is_captured = True


def capture_on(device: torch.device) -> Capture | None:
    """What makes graphs there; None where there are none."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaCapture:
    """All graphs share their memory: none begins before the last one's result was read."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with (
            ONE_AT_A_TIME,
            torch.cuda.device(self._device),
            # A capture that fails does not put its own stream back.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            # Of errors, those of this thread alone: others may use the GPU meanwhile.
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
