"""Counts what the ranks of a running engine send each other, for the tests of `esolm plan`."""

from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esolm.pipeline.parallel import module
from esolm.pipeline.parallel.gradient_scatter import GradientScatter
from tests.dist import plan_worker, workers

SMALL = 1024
"""Losses, norms and lengths are smaller than so many bytes, and no part of what is counted."""


class SentBytes(TorchDispatchMode):
    """Adds up the largest tensor that each collective or message carries, by its name in c10d."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            size = max((tensor.nbytes for tensor in tensors), default=0)
            if size >= SMALL:
                self.by_name[name] = self.by_name.get(name, 0) + size
        return function(*args, **(kwargs or {}))


def volumes(cases: list[dict[str, Any]]) -> Any:
    """Per case, of every rank: the bytes by operation of the second step."""
    answers = []
    for case in cases:
        with workers.engine_of(case) as (engine, source):
            engine.train_step(workers.batch_of(source, 0), workers.LEARNING_RATE)
            with SentBytes() as counting:
                engine.train_step(workers.batch_of(source, 1), workers.LEARNING_RATE)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, counting.by_name)
        answers.append(everyone)
    return answers


def beside_the_backward_pass(cases: list[dict[str, Any]]) -> Any:
    """Per case, of every rank: the bytes scattered in a step, and before its last backward ended.

    Also how many elements of gradients the rank has.
    """
    answers = []
    for case in cases:
        bucket = patch.object(module, "REDUCE_BUCKET", case["bucket"])
        with bucket, workers.engine_of(case) as (engine, source):
            batches, early = workers.batch_of(source, 0), {}
            with SentBytes() as counting:

                def finish(
                    scatter: GradientScatter, counting: SentBytes = counting, early: Any = early
                ) -> None:
                    early.update(counting.by_name)
                    finish_of_all(scatter)

                with patch.object(GradientScatter, "finish", finish):
                    engine.train_step(batches, workers.LEARNING_RATE)
            elements = sum(parameter.numel() for _, parameter in engine.parameters())
        name = "_reduce_scatter_base_"
        found = [counting.by_name.get(name, 0), early.get(name, 0), elements]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, found)
        answers.append(everyone)
    return answers


finish_of_all = GradientScatter.finish

if __name__ == "__main__":
    assert workers.MODELS["plan"] is plan_worker.MODEL
    workers.main(globals())
