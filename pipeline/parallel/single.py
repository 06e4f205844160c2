"""The whole training network in one process: export, evaluation, tests."""

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
    return whole_network()


def whole_network() -> ModelParallelConfig:
    """What layers are built with where every process of the job holds the network unsplit.

    Needs torch.distributed; creates megatron-core's groups, all of one, if there are none.
    """
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    return ModelParallelConfig(use_cpu_initialization=True, perform_initialization=False)
