"""The engine without pipeline stages: tensor parallelism and ZeRO-1, 2 or 3."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from model.loss import SparseTargets, weighted_loss
from model.network import Network
from pipeline.parallel.bootstrap import import_deepspeed
from pipeline.parallel.engine import (
    Engine,
    EngineConfig,
    MicroBatch,
    build_optimizer,
    initialize_module,
    parallel_config,
)


class LossModule(nn.Module):
    """The network and its loss in one forward call, as ZeRO-3's hooks need it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor], targets: SparseTargets) -> Tensor:
        return weighted_loss(self.network.head, self.network(inputs), targets)


class FlatEngine(Engine):
    """DeepSpeedEngine over the whole network."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        deepspeed = import_deepspeed()
        module = LossModule(Network(config.model, parallel_config(config.layout)))
        initialize_module(module, config)
        module.to(config.device)
        self.deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, config),
            config=config.deepspeed(),
            mpu=_ModelParallelUnit(),
            dist_init_required=False,
        )

    def _run(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.train()
        for batch in batches:
            inputs, targets = self._on_device(batch)
            loss = self._record(self.deepspeed(inputs, targets))
            self.deepspeed.backward(loss)
            self.deepspeed.step()

    def _run_without_update(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.eval()
        with torch.no_grad():
            for batch in batches:
                inputs, targets = self._on_device(batch)
                self._record(self.deepspeed(inputs, targets))

    def _on_device(self, batch: MicroBatch) -> tuple[Any, Any]:
        device = self.config.device
        return (
            tuple(tensor.to(device, non_blocking=True) for tensor in batch.inputs),
            tuple(tensor.to(device, non_blocking=True) for tensor in batch.targets),
        )


class _ModelParallelUnit:
    """The few questions about groups that DeepSpeed asks.

    megatron-core's module itself cannot be passed: DeepSpeed would take its sequence-parallel
    functions for its own.
    """

    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    @staticmethod
    def get_data_parallel_group_ranks() -> list[int]:
        return torch.distributed.get_process_group_ranks(parallel_state.get_data_parallel_group())
