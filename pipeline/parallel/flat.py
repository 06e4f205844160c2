"""The engine without pipeline stages: tensor parallelism and ZeRO-1, 2 or 3."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state

from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.copies import copies_group, copies_rank
from esolm.pipeline.parallel.deepspeed_engine import DeepSpeedEngine, deepspeed_config
from esolm.pipeline.parallel.engine import EngineConfig
from esolm.pipeline.parallel.module import LossModule, empty_network, initialize_module
from esolm.pipeline.parallel.to_device import on_device
from esolm.pipeline.parallel.zero import cut_one_by_one


class FlatEngine(DeepSpeedEngine):
    """Runs DeepSpeed's plain engine over the whole network."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        module, mpu = LossModule(empty_network(config), config.logits_mb), _ModelParallelUnit()
        take: Any = list
        if config.layout.zero == 3:
            take = partial(cut_one_by_one, settings=deepspeed_config(config), mpu=mpu)
        initialize_module(module, config, take)
        self._wrap(module, mpu=mpu)

    @staticmethod
    def runs(config: EngineConfig) -> bool:
        return config.layout.pp == 1

    def _run(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.train()
        for batch in batches:
            inputs, targets = on_device(batch, self.config.device)
            loss = self._record(self.deepspeed(inputs, targets, self._losses.new_rows()))
            self.deepspeed.backward(loss)
            self.deepspeed.step()

    def _run_without_update(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.eval()
        with torch.no_grad():
            for batch in batches:
                inputs, targets = on_device(batch, self.config.device)
                self._record(self.deepspeed(inputs, targets, self._losses.new_rows()))


class _ModelParallelUnit:
    """The few questions about groups that DeepSpeed asks.

    megatron-core's module itself cannot be passed: DeepSpeed would take its sequence-parallel
    functions for its own.
    """

    get_data_parallel_group = staticmethod(copies_group)
    get_data_parallel_rank = staticmethod(copies_rank)
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(
        parallel_state.get_tensor_model_parallel_world_size
    )
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    @staticmethod
    def get_data_parallel_world_size() -> int:
        return copies_group().size()

    @staticmethod
    def get_data_parallel_group_ranks() -> list[int]:
        return torch.distributed.get_process_group_ranks(copies_group())
