"""The engine with pipeline stages: DeepSpeed's 1F1B schedule, with ZeRO-1."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from esolm.model.attention import MaskBuilder
from esolm.model.loss import SparseTargets, weighted_loss
from esolm.model.network import Block, Embedding, Head
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.bootstrap import import_deepspeed
from esolm.pipeline.parallel.copies import copies_rank
from esolm.pipeline.parallel.deepspeed_engine import DeepSpeedEngine
from esolm.pipeline.parallel.engine import EngineConfig
from esolm.pipeline.parallel.module import initialize_module, parallel_config


class PipeEngine(DeepSpeedEngine):
    """Runs DeepSpeed's PipelineEngine over the network, which is cut into stages."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        import_deepspeed()
        from deepspeed.pipe import LayerSpec
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        layout, parallel, masks = config.layout, parallel_config(config.layout), MaskBuilder()
        topology = PipeModelDataParallelTopology(
            num_pp=layout.pp, num_mp=layout.tp, num_dp=layout.copies
        )
        _check_rank_order(topology)
        blocks = [
            LayerSpec(Block, config.model, parallel, layer, masks)
            for layer in range(config.model.num_layers)
        ]
        module = _balanced_pipeline(config)(
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
        if config.model.tied_embeddings and parallel_state.is_pipeline_last_stage():
            # DeepSpeed leaves a parameter with this mark out of the norm.
            module.forward_funcs[-1].output.weight.ds_pipe_replicated = True
        self._wrap(module)

    @staticmethod
    def runs(config: EngineConfig) -> bool:
        return config.layout.pp > 1

    def _late(self, module: Any) -> list[nn.Parameter]:
        # A stage goes backward once for each tensor that it passes on, and the embedding makes two.
        layers = [layer for layer in module.forward_funcs if isinstance(layer, Embedding)]
        late = [parameter for layer in layers for parameter in layer.parameters()]
        tied = module.tied_weight()
        return late if tied is None else [*late, tied]

    def _loss(self, hidden_TD: Tensor, targets: SparseTargets) -> Tensor:
        """Returns the loss; called on the last stage with the head's output.

        The head is the last layer there.
        """
        head = self.deepspeed.module.forward_funcs[-1]
        assert isinstance(head, Head)
        logits_mb, by_row = self.config.logits_mb, self._losses.new_rows()
        return self._record(weighted_loss(head, hidden_TD, targets, logits_mb, by_row))

    def _in_order(self, batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
        return one_short_then_longest_first(batches)

    def _run(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.train_batch(_pairs(batches))

    def _run_without_update(self, batches: Sequence[MicroBatch]) -> None:
        self.deepspeed.eval_batch(
            _pairs(batches), num_micro_batches=len(batches), reduce_output=None, bcast_loss=False
        )
        self.deepspeed.total_loss = None


def one_short_then_longest_first(batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Returns micro-batches in an order in which stages wait little for each other.

    Where lengths alternate, 1F1B waits at every change. All long ones in one piece cost the same in
    front as at the end: a stage waits for each other one as long as a long one takes. A short one
    in front of them saves a tenth of that (`tests/pipeline/parallel/test_order.py`).
    """
    *others, shortest = sorted(batches, key=lambda batch: -batch.inputs[0].numel())
    return [shortest, *others]


def _pairs(batches: Sequence[MicroBatch]) -> Iterator[tuple[Any, Any]]:
    """Yields the (inputs, labels) that DeepSpeed's pipeline pulls."""
    for batch in batches:
        yield batch.inputs, batch.targets


def _balanced_pipeline(config: EngineConfig) -> Any:
    """Returns a kind of PipelineModule that is cut where the stages' costs are most alike.

    DeepSpeed's own measure is the number of parameters: by it the embedding weighs as much as the
    output layer, although it computes nothing.

    If embeddings are tied, the output layer's weight, on the last stage, is a copy of the
    embedding's on the first. Both start alike, get the sum of both gradients and so the same
    updates, but for rounding: the order in which more than two replicas are summed depends on where
    in its stage a weight lies (seen: 1.5e-8 after a step with 4). The norm and the checkpoints take
    the first, so a resume makes them equal. DeepSpeed's own tied layers share whole modules under
    names that no other layout has.
    """
    from deepspeed.pipe import PipelineModule
    from deepspeed.runtime.utils import partition_balanced

    layer_costs, tied = config.layer_costs, config.model.tied_embeddings

    class BalancedPipeline(PipelineModule):  # type: ignore[misc]
        def _partition_layers(self, method: str) -> None:
            # partition_balanced takes whole numbers, and no layer may be free.
            weights = [max(1, round(1000 * cost / max(layer_costs))) for cost in layer_costs]
            self.parts = partition_balanced(weights=weights, num_parts=self.num_stages)
            stage = self._topo.get_coord(self.global_rank).pipe
            self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

        def _build(self) -> None:
            with torch.device("meta"):
                super()._build()
            initialize_module(self, config)

        def get_tied_weights_and_groups(self) -> list[tuple[Any, Any]]:
            """Returns (holder of a `grad`, group) pairs.

            The engine sums each `grad` over its group before it reduces over replicas.
            """
            weight = self.tied_weight()
            if weight is None:
                return []
            return [(_Gradient(weight), parallel_state.get_embedding_group())]

        def tied_weight(self) -> nn.Parameter | None:
            """Returns this stage's copy of what is tied, if it has one."""
            layers, last = self.forward_funcs, self.num_stages - 1
            stage = self._topo.get_coord(self.global_rank).pipe
            if not tied or stage not in (0, last):
                return None
            weight = layers[0].tokens.weight if stage == 0 else layers[-1].output.weight
            assert isinstance(weight, nn.Parameter)
            return weight

    return BalancedPipeline


class _Gradient:
    """A parameter's gradient, wherever DeepSpeed accumulates it; its pipeline knows of two places.

    bf16 with offload uses a third one, and without it the copies would drift apart in silence.
    """

    def __init__(self, parameter: Any) -> None:
        accumulated = getattr(parameter, "grad_accum", None)
        self.grad = parameter.grad if accumulated is None else accumulated
        self._hp_grad = getattr(parameter, "_hp_grad", None)


def _check_rank_order(topology: object) -> None:
    """Asserts that both libraries number the ranks alike; else tensors would go to wrong ones."""
    mine = topology.get_coord(torch.distributed.get_rank())  # type: ignore[attr-defined]
    theirs = (
        parallel_state.get_pipeline_model_parallel_rank(),
        copies_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    assert (mine.pipe, mine.data, mine.model) == theirs, (mine, theirs)
