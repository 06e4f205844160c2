"""One rank of a run that goes wrong: `python -m tests.e2e.faulty KIND RUN [key=value...]`.

The kinds that kill do it at an exact place, to rank 0 where that is the commit: no signal from
outside hits the moment between two system calls.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from esolm.pipeline.checkpoint import checkpointer, commit
from esolm.pipeline.data.batches import BatchSource
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.errors import DataError
from esolm.pipeline.run.config import load_config
from esolm.pipeline.train.run import train

FAULTY_STEP = 6
GLOBAL_BATCH_SIZE = 4
SLOW_READ_SECONDS = 0.1


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

    def spoiled(self: BatchSource, first_sample: int, context: int = 0) -> list[MicroBatch]:
        batches = batch(self, first_sample, context)
        if first_sample // GLOBAL_BATCH_SIZE != FAULTY_STEP:
            return batches
        index, labels, weights = batches[0].targets
        targets = (index, labels, weights * np.inf)
        return [MicroBatch(batches[0].inputs, targets, batches[0].term), *batches[1:]]

    BatchSource.batch = spoiled  # type: ignore[method-assign]


def full_disk() -> None:
    """From the batch of one step on, not a byte more fits on the disk of the run."""
    batch, fill = BatchSource.batch, Path(os.environ["FILL"])

    def last_bytes(self: BatchSource, first_sample: int, context: int = 0) -> list[MicroBatch]:
        if first_sample // GLOBAL_BATCH_SIZE == FAULTY_STEP and not fill.exists():
            with fill.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        return batch(self, first_sample, context)

    BatchSource.batch = last_bytes  # type: ignore[method-assign]


def slow_reader() -> None:
    """The thread that reads ahead is in the middle of a batch at almost any moment."""
    read = SampleReader.read

    def slowly(self: SampleReader, indices: Any) -> Any:
        time.sleep(SLOW_READ_SECONDS)
        return read(self, indices)

    SampleReader.read = slowly  # type: ignore[method-assign]


def slow_checks() -> None:
    """A batch of a validation or a file of a checkpoint is quick enough for the watchdog.

    All batches of a validation, or all files of a checkpoint, are not.
    """
    batch, digest = BatchSource.batch, commit.digest

    def slow_batch(self: BatchSource, first_sample: int, context: int = 0) -> list[MicroBatch]:
        if isinstance(self.reader, SampleReader):  # of a validation
            time.sleep(1.0)
        return batch(self, first_sample, context)

    one_at_a_time = threading.Lock()

    def slow_digest(path: Path) -> dict[str, Any]:
        if path.parent.suffix != commit.STAGING:
            with one_at_a_time:
                time.sleep(5.0)
        return digest(path)

    BatchSource.batch = slow_batch  # type: ignore[method-assign]
    commit.digest = slow_digest


def fails_while_saving() -> None:
    """A batch cannot be read while the checkpoint of step 4 is still being written."""
    read, sync = SampleReader.read, os.fsync

    def unreadable(self: SampleReader, indices: Any) -> Any:
        if int(indices[0]) // GLOBAL_BATCH_SIZE >= FAULTY_STEP:
            raise DataError("the shard is gone")
        return read(self, indices)

    def slow_disk(descriptor: int) -> None:
        if commit.STAGING in os.readlink(f"/proc/self/fd/{descriptor}"):
            time.sleep(1.0)
        sync(descriptor)

    SampleReader.read = unreadable  # type: ignore[method-assign]
    os.fsync = slow_disk


def fails_while_a_save_is_stuck() -> None:
    """A batch cannot be read while the disk takes for ever over the checkpoint of step 4."""
    fails_while_saving()
    sync = os.fsync

    def stuck_disk(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.parent.suffix == commit.STAGING:  # not a small file on its way to its name
            time.sleep(1000)
        sync(descriptor)

    os.fsync = stuck_disk
    checkpointer.STUCK_SECONDS = 2


def never_leaves() -> None:
    """A batch cannot be read, and leaving the process groups then takes for ever."""
    read = SampleReader.read

    def unreadable(self: SampleReader, indices: Any) -> Any:
        if int(indices[0]) // GLOBAL_BATCH_SIZE >= FAULTY_STEP:
            raise DataError("the shard is gone")
        return read(self, indices)

    SampleReader.read = unreadable  # type: ignore[method-assign]
    dist.destroy_process_group = lambda: time.sleep(1000)


def killed_while_writing() -> None:
    """Of the last rank's file of step 8 one half is written, nothing is synced."""
    sync = os.fsync

    def killed(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.parent.name == "step_00000008.tmp" and os.environ["RANK"] == "1":
            os.truncate(path, path.stat().st_size // 2)
            _die()
        sync(descriptor)

    os.fsync = killed


def killed_before_the_manifest() -> None:
    """All files of step 8 are written and synced, and nothing says so."""
    write = commit.commit

    def killed(staging: Path, manifest: commit.CheckpointManifest) -> Path:
        if manifest.step == 8:
            _die()
        return write(staging, manifest)

    commit.commit = killed


def killed_before_the_rename() -> None:
    """The manifest of step 8 is written and synced, the directory not yet given its name."""
    rename = Path.rename

    def killed(self: Path, target: Any) -> Path:
        if self.name == "step_00000008.tmp":
            _die()
        return rename(self, target)

    Path.rename = killed  # type: ignore[method-assign]


def killed_during_retention() -> None:
    """Step 12 is committed; of step 4, which has to go, the first file is gone."""
    remove = shutil.rmtree

    def killed(path: Path, *arguments: Any, **options: Any) -> None:
        if Path(path).name == "step_00000004.tmp":
            next(Path(path).iterdir()).unlink()
            _die()
        remove(path, *arguments, **options)

    shutil.rmtree = killed  # type: ignore[assignment]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KINDS = {
    kind.__name__: kind
    for kind in (
        hang,
        infinite_loss,
        full_disk,
        slow_reader,
        slow_checks,
        fails_while_saving,
        fails_while_a_save_is_stuck,
        never_leaves,
        killed_while_writing,
        killed_before_the_manifest,
        killed_before_the_rename,
        killed_during_retention,
    )
}

if __name__ == "__main__":
    kind, path, *overrides = sys.argv[1:]
    if kind != "none":
        KINDS[kind]()
    sys.exit(train(load_config(path, overrides)))
