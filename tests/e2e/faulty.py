"""One rank of a run that goes wrong: `python -m tests.e2e.faulty KIND RUN [key=value...]`."""

import os
import sys
import time
from typing import Any

import numpy as np

from pipeline.config import load_config
from pipeline.data.reader import SampleReader
from pipeline.parallel.engine import MicroBatch
from pipeline.train.batches import BatchSource
from pipeline.train.run import train

FAULTY_STEP = 6
GLOBAL_BATCH_SIZE = 4


def hang() -> None:
    """The last rank's reader never comes back from the batch of one step."""
    read = SampleReader.read

    def never(self: SampleReader, indices: Any) -> Any:
        if os.environ.get("RANK") == "1" and int(indices[0]) // GLOBAL_BATCH_SIZE >= FAULTY_STEP:
            time.sleep(1000)
        return read(self, indices)

    SampleReader.read = never  # type: ignore[method-assign]


def infinite_loss() -> None:
    """The batch of one step has an infinite loss, whenever it is read."""
    batch = BatchSource.batch

    def spoiled(self: BatchSource, first_sample: int) -> list[MicroBatch]:
        batches = batch(self, first_sample)
        if first_sample // GLOBAL_BATCH_SIZE != FAULTY_STEP:
            return batches
        index, labels, weights = batches[0].targets
        targets = (index, labels, weights * np.inf)
        return [MicroBatch(batches[0].inputs, targets, batches[0].term), *batches[1:]]

    BatchSource.batch = spoiled  # type: ignore[method-assign]


if __name__ == "__main__":
    kind, path, *overrides = sys.argv[1:]
    {"hang": hang, "infinite_loss": infinite_loss, "none": lambda: None}[kind]()
    sys.exit(train(load_config(path, overrides)))
