"""The training network in one process, without a launcher: export, evaluation, tests."""

import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state


def single_process() -> ModelParallelConfig:
    """Creates process groups of one if there are none; what layers of the network are built with.

    Raises RuntimeError inside a job of several processes.
    """
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    if dist.get_world_size() != 1:
        raise RuntimeError(f"one process is needed here, this job has {dist.get_world_size()}")
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    return ModelParallelConfig(use_cpu_initialization=True, perform_initialization=False)
