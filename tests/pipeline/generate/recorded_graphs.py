"""What a CUDA graph is, on a CPU: operations on the same memory again, without any Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Takes down every operation with its arguments and its results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tensors(found)))
        return found

    def replay(self) -> None:
        for func, args, kwargs, results in self.operations:
            for old, new in zip(results, tensors(func(*args, **kwargs)), strict=True):
                if memory(old) != memory(new):
                    old.copy_(new)


class RecordedGraphs:
    """In the place of `CudaCapture`. captures, replays: how often there was one."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        with Recorder() as recorder:
            result = run()
        # A capture runs nothing: what the first replay does not compute is not there.
        for _, args, _, results in recorder.operations:
            given = {memory(each) for each in tensors(args)}
            for each in results:
                if memory(each) not in given and each.is_floating_point():
                    each.fill_(torch.nan)

        def replay() -> Tensor:
            self.replays += 1
            recorder.replay()
            return result

        return replay


def tensors(values: Any) -> list[Tensor]:
    """Packed weights are none: they have no memory that one could look at."""
    found = [each for each in tree_leaves(values) if isinstance(each, Tensor)]
    return [each for each in found if each.layout == torch.strided]


def memory(tensor: Tensor) -> int:
    """The same for a tensor and what is a view of it."""
    return tensor.untyped_storage().data_ptr()
