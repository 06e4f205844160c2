"""Measures what the training state of a running engine takes, for the tests of `esolm plan`."""

import contextlib
import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esolm.model.config import ModelConfig
from esolm.pipeline.parallel.bootstrap import device_of, process_info
from esolm.pipeline.parallel.engine import Engine
from tests.dist import workers

# Parameters by far outweigh what a few tokens leave behind.
MODEL = ModelConfig(
    vocab_size=5001,
    mask_id=workers.MASK_ID,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    ffn_hidden_size=1024,
    cond_dim=16,
)
workers.MODELS["plan"] = MODEL


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage from the operation that made it until it is freed.

    known: tensors that are not to be counted.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._sizes: dict[int, tuple[int, Any]] = {}
        self.now = self.peak = 0
        for tensor in known:
            self._sizes[tensor.untyped_storage()._cdata] = (0, None)

    def start_again(self) -> None:
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._see(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            watch = weakref.ref(storage, lambda _: self._forget(key))
            self._sizes[key] = (storage.nbytes(), watch)
            self.now += storage.nbytes()

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)[0]


class AllocatedBytes(contextlib.nullcontext[None]):
    """Counts what a GPU's allocator has handed out since, with the interface of LiveBytes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        small = torch.ones(8, 8, device=device)
        small @ small  # takes the workspace of the library of matrix products, which stays
        self._device, self._before = device, torch.cuda.memory_allocated(device)

    def __enter__(self) -> "AllocatedBytes":  # type: ignore[override]
        return self

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def start_again(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)


def counter_of(device: torch.device) -> LiveBytes | AllocatedBytes:
    return AllocatedBytes(device) if device.type == "cuda" else LiveBytes()


def measure(cases: list[dict[str, Any]]) -> Any:
    """Per case, of every rank: bytes by part after a step, and the most at any moment of one."""
    answers = []
    for case in cases:
        gc.collect()
        device = device_of(process_info())
        with counter_of(device) as live, workers.engine_of(case) as (engine, source):
            peaks = []
            for step in range(3):
                gc.collect()
                live.start_again()
                engine.train_step(workers.batch_of(source, step), workers.LEARNING_RATE)
                peaks.append(live.peak)
            # The first step makes the optimizer's state. In some, cycles that no longer matter wait
            # for Python's collector at the worst moment: the least of the peaks is without them.
            found = {**_parts(engine), "peak": min(peaks[1:])}
        del engine, source
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, found)
        answers.append(everyone)
    return answers


def _parts(engine: Engine) -> dict[str, int]:
    """Bytes of the weights, and of what the optimizer holds."""
    parameters = [parameter for _, parameter in engine.parameters()]
    partitions = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    states = list(engine.optimizer.state.items())
    updated = [held for held, _ in states if all(held is not other for other in parameters)]
    moments = [state[name] for _, state in states for name in ("exp_avg", "exp_avg_sq")]
    return {
        "weights": _bytes([*parameters, *partitions]),
        "master": _bytes(updated),
        "moments": _bytes(moments),
        "ema": _bytes([state["ema"] for _, state in states]),
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    """Of the storages below, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


if __name__ == "__main__":
    workers.main(globals())
