"""Several processes that share out rows; each holds the whole network."""

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from pipeline.parallel.bootstrap import (
    ProcessInfo,
    device_of,
    join_job,
    process_info,
    shutdown_processes,
)

T = TypeVar("T")

TIMEOUT = timedelta(hours=12)


def join() -> tuple[ProcessInfo, torch.device]:
    """Enters the job over gloo, and alone where there is no launcher; this rank's device."""
    info = process_info()
    if not dist.is_initialized():
        join_job(info, "gloo", TIMEOUT)
    return info, device_of(info)


def gather(mine: T, info: ProcessInfo) -> list[T] | None:
    """Every rank's object on rank 0, in the order of ranks; None on the others."""
    if info.world_size == 1:
        return [mine]
    everything: list[T | None] | None = [None] * info.world_size if info.rank == 0 else None
    dist.gather_object(mine, everything)
    if everything is None:
        return None
    return [each for each in everything if each is not None]


def leave(info: ProcessInfo) -> None:
    """Leaves a job of several processes together."""
    if info.world_size > 1:
        shutdown_processes()
