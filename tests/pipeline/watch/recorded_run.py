"""A run in a process of its own that notes what it feeds: `recorded_run.py RUN.yaml FED`.

Its seventh step is refused, so that it rolls back to the checkpoint of step 4.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.engine import StepResult
from esolm.pipeline.parallel.one_process import OneProcessEngine
from esolm.pipeline.run.config import load_config
from esolm.pipeline.train.guards import SpikeGuard
from esolm.pipeline.train.run import train

REFUSED_CALL = 7

fed: list[list[MicroBatch]] = []
train_step, judge, reason = OneProcessEngine.train_step, SpikeGuard.judge, SpikeGuard.reason


def noted_step(self: OneProcessEngine, batches: Sequence[MicroBatch], *rest: Any) -> StepResult:
    fed.append(list(batches))
    return train_step(self, batches, *rest)


def refusing_judge(self: SpikeGuard, result: StepResult) -> bool:
    return len(fed) != REFUSED_CALL and judge(self, result)


def made_up_reason(self: SpikeGuard, result: StepResult) -> str | None:
    return "for a test" if len(fed) == REFUSED_CALL else reason(self, result)


if __name__ == "__main__":
    OneProcessEngine.train_step = noted_step  # type: ignore[method-assign,assignment]
    SpikeGuard.judge, SpikeGuard.reason = refusing_judge, made_up_reason  # type: ignore[method-assign]
    code = train(load_config(sys.argv[1], []))
    torch.save([[(*batch.inputs, *batch.targets) for batch in step] for step in fed], sys.argv[2])
    sys.exit(code)
