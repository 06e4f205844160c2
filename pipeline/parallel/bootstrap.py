"""Brings one process into the job: device, process groups, quiet libraries.

The order of imports matters: `DS_ACCELERATOR` must be set before DeepSpeed is imported. This module
imports it on its first use; nothing else in the package does so at import time but
`esolm.pipeline.parallel.bf16_zero1`, which is itself imported later.
"""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C._distributed_c10d import HashStore

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.layout import Layout

logger = logging.getLogger(__name__)

DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
"""One folder for each GPU that the driver has."""


@dataclass(frozen=True)
class ProcessInfo:
    """Where this process stands in the job, from torchrun's or Slurm's environment."""

    rank: int
    world_size: int
    local_rank: int


def process_info() -> ProcessInfo:
    """Reads RANK, WORLD_SIZE and LOCAL_RANK, or else SLURM_*; with neither, the process is alone.

    Raises ConfigError if srun started several tasks and MASTER_ADDR is not set.
    """
    env = os.environ
    if "RANK" in env:
        return ProcessInfo(
            int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", env["RANK"]))
        )
    if "SLURM_STEP_ID" in env and int(env["SLURM_NTASKS"]) > 1:
        if "MASTER_ADDR" not in env:
            raise ConfigError(
                f"srun started {env['SLURM_NTASKS']} tasks, but MASTER_ADDR is not set: export it "
                "(the job's first node) and MASTER_PORT, as the templates of `esolm submit` do"
            )
        return ProcessInfo(
            int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env["SLURM_LOCALID"])
        )
    return ProcessInfo(0, 1, 0)


def check_gpus(ranks: int) -> None:
    """Raises ConfigError if so many ranks, which all see the same GPUs, would have to share one."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < ranks:
        raise ConfigError(
            f"{ranks} ranks on this machine but {gpus} GPU{'s' if gpus > 1 else ''}: give --ranks "
            f"{gpus}, or CUDA_VISIBLE_DEVICES= in the environment to train on the CPU"
        )


def check_build() -> None:
    """Raises ConfigError if the machine has GPUs that this build of torch cannot use.

    An empty CUDA_VISIBLE_DEVICES says that the CPU is meant.
    """
    gpus = len(list(DRIVER_GPUS.iterdir())) if DRIVER_GPUS.is_dir() else 0
    built_for_gpus = torch.version.cuda is not None or torch.version.hip is not None
    if gpus and not built_for_gpus and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise ConfigError(
            f"this machine has {gpus} GPU{'s' if gpus > 1 else ''}, but the installed torch "
            f"{torch.__version__} is built for CPUs: install a build for CUDA, or set "
            "CUDA_VISIBLE_DEVICES= in the environment to train on the CPU"
        )


def prepare_for_cuda(layout: Layout) -> None:
    """Sets what CUDA reads once, when it starts; called before anything asks for a GPU.

    megatron-core overlaps the communication of tensor parallelism with computation by the order of
    launches, which a single connection keeps. Without tensor parallelism it would only slow down.
    """
    if layout.tp > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def describe_device(device: torch.device) -> str:
    """The device in words: its name and its memory, for the first lines of a log."""
    if device.type != "cuda":
        return f"{device}: {os.cpu_count()} cores, torch {torch.__version__}"
    about = torch.cuda.get_device_properties(device)
    memory = f"{about.total_memory / 2**30:.1f} GiB"
    return f"{device}: {about.name}, {memory}, torch {torch.__version__}"


def device_of(info: ProcessInfo) -> torch.device:
    """Returns this rank's GPU, or the CPU if the machine has none.

    Raises ConfigError if a launcher started more ranks here than there are GPUs, or if torch cannot
    use the GPUs that there are.
    """
    check_build()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Only a launcher sets LOCAL_WORLD_SIZE. A task of srun may see no GPU but its own.
    check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    device = torch.device("cuda", info.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def import_deepspeed() -> Any:
    """Returns the module of DeepSpeed, set up for the device that is there."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as compatible_ops

    # DeepSpeed would compile its shared-memory all-reduce for CPUs on first use, which takes 90 s.
    compatible_ops["deepspeed_shm_comm"] = False
    # It warns at every start that it does not know our optimizer, and bypasses the log's handlers.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    return deepspeed


def initialize_processes(
    info: ProcessInfo, layout: Layout, device: torch.device, timeout: timedelta
) -> None:
    """Creates the process groups of the layout: gloo on CPUs, NCCL on GPUs.

    timeout: how long a collective may take in any group, also in those that the libraries make.
    Raises ConfigError if the job has another number of ranks than the layout.
    """
    if info.world_size != layout.world_size:
        raise ConfigError(
            f"{layout} needs {layout.world_size} ranks, but {info.world_size} started"
        )
    # Not all code that makes groups takes a timeout, and NCCL's default ends before the watchdog.
    c10d.default_pg_timeout = timeout
    c10d.default_pg_nccl_timeout = timeout  # type: ignore[attr-defined]
    deepspeed = import_deepspeed()
    backend = "nccl" if device.type == "cuda" else "gloo"
    join_job(info, backend)
    # DeepSpeed takes it for the device's index, and a task of srun may see its own GPU alone.
    os.environ["LOCAL_RANK"] = str(info.local_rank if device.index is None else device.index)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    initialize_groups(layout)


def join_job(info: ProcessInfo, backend: str, timeout: timedelta | None = None) -> None:
    """Makes the group of all processes; a process that is alone needs nobody to meet."""
    store = HashStore() if info.world_size == 1 else None
    dist.init_process_group(
        backend, store=store, rank=info.rank, world_size=info.world_size, timeout=timeout
    )


def initialize_groups(layout: Layout) -> None:
    """Creates megatron-core's tensor, context, pipeline and data groups of the layout."""
    if layout.sequence and not torch.cuda.is_available():
        # megatron-core asks CUDA for the device of its gather buffers, even where there is none.
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        context_parallel_size=layout.cp,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=c10d.default_pg_timeout / timedelta(minutes=1),
    )


def shutdown_processes() -> None:
    """Leaves the process groups; safe to call when there are none."""
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
