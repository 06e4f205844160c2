"""The engine with pipeline stages: DeepSpeed's 1F1B schedule, with ZeRO-1."""

from collections.abc import Sequence
from typing import Any

from megatron.core import parallel_state
from torch import Tensor

from model.attention import MaskBuilder
from model.loss import SparseTargets, weighted_loss
from model.network import Block, Embedding, Head
from pipeline.parallel.bootstrap import import_deepspeed
from pipeline.parallel.engine import (
    Engine,
    EngineConfig,
    MicroBatch,
    build_optimizer,
    initialize_module,
    iterate,
    parallel_config,
)


class PipeEngine(Engine):
    """PipelineEngine over the network cut into stages."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        deepspeed = import_deepspeed()
        from deepspeed.pipe import LayerSpec
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        layout, parallel, masks = config.layout, parallel_config(config.layout), MaskBuilder()
        topology = PipeModelDataParallelTopology(
            num_pp=layout.pp, num_mp=layout.tp, num_dp=layout.dp
        )
        _check_rank_order(topology)
        blocks = [
            LayerSpec(Block, config.model, parallel, layer, masks)
            for layer in range(config.model.num_layers)
        ]
        module = _balanced_pipeline(config.layer_costs)(
            [
                LayerSpec(Embedding, config.model, parallel),
                *blocks,
                LayerSpec(Head, config.model, parallel),
            ],
            topology=topology,
            loss_fn=self._loss,
            # Rows of one and of two streams differ in length within a step.
            dynamic_shape=True,
        )
        initialize_module(module, config)
        self.deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=build_optimizer(module, config),
            config=config.deepspeed(),
            dist_init_required=False,
        )

    def _loss(self, hidden_TD: Tensor, targets: SparseTargets) -> Tensor:
        """Called on the last stage with the head's output; the head is the last layer there."""
        head = self.deepspeed.module.forward_funcs[-1]
        assert isinstance(head, Head)
        return self._record(weighted_loss(head, hidden_TD, targets))

    def _run(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.train_batch(iterate(batches))

    def _run_without_update(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.eval_batch(
            iterate(batches), num_micro_batches=len(batches), reduce_output=None, bcast_loss=False
        )
        self.deepspeed.total_loss = None


def _balanced_pipeline(layer_costs: Sequence[float]) -> Any:
    """PipelineModule cut where the stages' costs are most alike.

    By its own measure, parameters, the embedding weighs as much as the output layer, although it
    computes nothing.
    """
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.utils import partition_balanced

    class BalancedPipeline(PipelineModule):  # type: ignore[misc]
        def _partition_layers(self, method: str) -> None:
            # partition_balanced takes whole numbers, and no layer may be free.
            weights = [max(1, round(1000 * cost / max(layer_costs))) for cost in layer_costs]
            self.parts = partition_balanced(weights=weights, num_parts=self.num_stages)
            stage = self._topo.get_coord(self.global_rank).pipe
            self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    return BalancedPipeline


def _check_rank_order(topology: object) -> None:
    """The two libraries must number the ranks alike, or tensors would go to the wrong ones."""
    mine = topology.get_coord(parallel_state.torch.distributed.get_rank())  # type: ignore[attr-defined]
    theirs = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    assert (mine.pipe, mine.data, mine.model) == theirs, (mine, theirs)
