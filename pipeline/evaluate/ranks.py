"""Several processes that share out rows among them; each holds the whole network."""

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from esolm.pipeline.parallel.bootstrap import (
    ProcessInfo,
    device_of,
    join_job,
    process_info,
    shutdown_processes,
)

T = TypeVar("T")

TIMEOUT = timedelta(hours=12)


def join() -> tuple[ProcessInfo, torch.device]:
    """Joins the job over gloo and returns this process with its device.

    Without a launcher the process is a job of its own.
    """
    info = process_info()
    if not dist.is_initialized():
        join_job(info, "gloo", TIMEOUT)
    return info, device_of(info)


def gather(mine: T, info: ProcessInfo) -> list[T] | None:
    """Returns the objects of all ranks, in their order, on rank 0, and None on the others."""
    if info.world_size == 1:
        return [mine]
    everything: list[T | None] | None = [None] * info.world_size if info.rank == 0 else None
    dist.gather_object(mine, everything)
    if everything is None:
        return None
    return [each for each in everything if each is not None]


def leave(info: ProcessInfo) -> None:
    """Leaves a job of several processes together with the others."""
    if info.world_size > 1:
        shutdown_processes()
