"""Counts for what a step of a running engine would have the host wait on a GPU."""

import gc
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from tests.dist import workers

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount")
"""What cannot return before the device has computed its input."""


class Waits(TorchDispatchMode):
    """Counts reads of values, and calls that wait for all that was launched."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.synchronisations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.reads += function._schema.name.removeprefix("aten::") in READS
        return function(*args, **(kwargs or {}))

    def synchronize(self, *_: Any) -> None:
        self.synchronisations += 1


def waits(cases: list[dict[str, Any]]) -> Any:
    """Per case: [reads, synchronisations] of the fourth step; timers begin after two."""
    answers = []
    for case in cases:
        with workers.engine_of(case) as (engine, source):
            for step in range(3):
                engine.train_step(workers.batch_of(source, step), workers.LEARNING_RATE)
            batches = workers.batch_of(source, 3)
            gc.collect()  # engines of former cases synchronise when they go
            counting = Waits()
            accelerator = type(get_accelerator())
            with patch.object(accelerator, "synchronize", counting.synchronize), counting:
                engine.train_step(batches, workers.LEARNING_RATE)
            answers.append([counting.reads, counting.synchronisations])
    return answers


if __name__ == "__main__":
    torch.set_num_threads(1)
    workers.main(globals())
