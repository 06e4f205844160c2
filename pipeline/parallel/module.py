"""What every engine builds alike: the network of a layout, its initial weights, its optimizer."""

import torch
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor, nn

from esolm.model.initialize import initialize
from esolm.model.loss import SparseTargets, weighted_loss
from esolm.model.network import Network
from esolm.model.recompute import set_recompute
from esolm.model.sequence_parallel import sum_partial_gradients
from esolm.pipeline.parallel.engine import EngineConfig
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.parallel.names import canonical_parameters
from esolm.pipeline.parallel.optimizer import EmaAdamW


class LossModule(nn.Module):
    """The network and its loss in one forward call, as ZeRO-3's hooks need it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor], targets: SparseTargets) -> Tensor:
        return weighted_loss(self.network.head, self.network(inputs), targets)


def parallel_config(layout: Layout) -> ModelParallelConfig:
    """Returns megatron-core's settings for layers that we initialise, on the CPU first."""
    return ModelParallelConfig(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        pipeline_dtype=torch.float32 if layout.pp > 1 else None,
        use_cpu_initialization=True,
        perform_initialization=False,
        sequence_parallel=layout.sequence,
    )


def initialize_module(module: nn.Module, config: EngineConfig) -> None:
    """Sets the initial weights of the part of the network that this rank holds."""
    initialize(
        canonical_parameters(module, config.model),
        config.model,
        config.seed,
        parallel_state.get_tensor_model_parallel_rank(),
        config.layout.tp,
    )
    sum_partial_gradients(module, parallel_config(config.layout))
    set_recompute(module, config.recompute)


def build_optimizer(module: nn.Module, config: EngineConfig) -> EmaAdamW:
    """Returns the optimizer over the module's parameters; only matrices decay."""
    arguments = dict(config.optimizer)
    weight_decay = arguments.pop("weight_decay")
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return EmaAdamW(groups, weight_decay=weight_decay, **arguments)
