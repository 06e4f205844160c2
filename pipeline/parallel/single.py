"""The whole training network in one process: export, evaluation, replay, tests."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.model.network import Network
from esolm.pipeline.parallel.bootstrap import ProcessInfo, join_job


def single_process() -> ModelParallelConfig:
    """Returns the settings that layers of the network are built with in a process of its own.

    Creates process groups of one rank if there are none. Raises RuntimeError inside a job of
    several processes.
    """
    if not dist.is_initialized():
        join_job(ProcessInfo(0, 1, 0), "gloo")
    if dist.get_world_size() != 1:
        raise RuntimeError(f"one process is needed here, this job has {dist.get_world_size()}")
    return whole_network()


def whole_network() -> ModelParallelConfig:
    """Returns the settings for layers where every process of the job holds the network unsplit.

    Needs torch.distributed; creates megatron-core's groups, which split nothing, if there are none.
    """
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
    return ModelParallelConfig(use_cpu_initialization=True, perform_initialization=False)


def load_network(
    model: ModelConfig, tensors: Mapping[str, Tensor], parallel: ModelParallelConfig
) -> Network:
    """Returns the fp32 network in evaluation mode with these weights, given by canonical name.

    parallel: what `single_process` or `whole_network` returned. Raises KeyError for a weight that
    is missing.
    """
    network = Network(model, parallel).float().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[name])
    return network
