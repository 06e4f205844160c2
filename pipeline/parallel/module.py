"""What every engine builds alike: the network of a layout, its initial weights, its optimizer.

No rank ever holds the whole network: it is made on the meta device, where tensors have no memory,
and then filled one tensor after the other.
"""

from collections.abc import Callable, Iterator

import torch
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor, nn

from esolm.model.fp8 import set_fp8
from esolm.model.initialize import initial_values
from esolm.model.loss import SparseTargets, weighted_loss
from esolm.model.network import Network
from esolm.model.pieces import LOGITS_MB
from esolm.model.recompute import set_recompute
from esolm.model.sequence_parallel import sum_partial_gradients
from esolm.model.tensors import network_tensors
from esolm.pipeline.parallel.engine import EngineConfig
from esolm.pipeline.parallel.layout import REDUCE_BUCKET, Layout
from esolm.pipeline.parallel.names import canonical_parameters
from esolm.pipeline.parallel.optimizer import EmaAdamW


class LossModule(nn.Module):
    """The network and its loss in one forward call, as ZeRO-3's hooks need it."""

    def __init__(self, network: Network, logits_mb: int = LOGITS_MB) -> None:
        super().__init__()
        self.network, self.logits_mb = network, logits_mb

    def forward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        targets: SparseTargets,
        by_row: Tensor | None = None,
    ) -> Tensor:
        """by_row: see `weighted_loss`."""
        hidden_TD = self.network(inputs)
        return weighted_loss(self.network.head, hidden_TD, targets, self.logits_mb, by_row)


def parallel_config(layout: Layout) -> ModelParallelConfig:
    """Returns megatron-core's settings for layers that we initialise, on the CPU first."""
    return ModelParallelConfig(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        context_parallel_size=layout.cp,
        pipeline_dtype=torch.float32 if layout.pp > 1 else None,
        use_cpu_initialization=True,
        perform_initialization=False,
        sequence_parallel=layout.sequence,
    )


def empty_network(config: EngineConfig) -> Network:
    """Returns the network of this rank, all of it, on the meta device."""
    with torch.device("meta"):
        return Network(config.model, parallel_config(config.layout))


def initialize_module(
    module: nn.Module,
    config: EngineConfig,
    take: Callable[[Iterator[nn.Parameter]], object] = list,
) -> None:
    """Sets the initial weights of the part of the network that this rank holds.

    module: that part, on the meta device; afterwards it is on config.device. take: is given the
    parameters, each of which gets its memory and its values when it is asked for, and may cut one
    before it asks for the next.
    """
    take(_filled(module, config))
    sum_partial_gradients(module, parallel_config(config.layout))
    set_fp8(module, config.fp8)
    set_recompute(module, config.recompute)


def _filled(module: nn.Module, config: EngineConfig) -> Iterator[nn.Parameter]:
    # While a parameter is out, nothing here may hold it: ZeRO-3 frees what it has cut.
    for name, parameter in canonical_parameters(module, config.model):
        _give_memory(parameter, _values(name, config))
        yield parameter


def _values(name: str, config: EngineConfig) -> Tensor:
    """Returns this rank's part of a tensor's initial values, in memory of its own."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    values = initial_values(name, config.model, config.seed, rank, config.layout.tp)
    return values.to(config.device, config.dtype, copy=True, memory_format=torch.contiguous_format)


def _give_memory(parameter: nn.Parameter, held: Tensor) -> None:
    """Puts a tensor in place of one on the meta device; every name of the parameter stays valid."""
    given = nn.Parameter(held)
    given.__dict__.update(parameter.__dict__)  # how it is split, for one
    torch.utils.swap_tensors(parameter, given)  # type: ignore[no-untyped-call]


def build_optimizer(module: nn.Module, config: EngineConfig) -> EmaAdamW:
    """Returns the optimizer over the module's parameters; only matrices decay."""
    arguments = dict(config.optimizer)
    weight_decay = arguments.pop("weight_decay")
    tensors = network_tensors(config.model)  # what ZeRO-3 has cut has no longer its own shape
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in canonical_parameters(module, config.model):
        (matrices if len(tensors[name].shape) > 1 else vectors).append(parameter)
    scatters = config.layout.scatters(config.precision, config.offload)
    parts = _buckets(matrices) if scatters else [matrices]
    # The first group is the last to be reduced, and vectors are all over the network.
    groups = [
        {"params": vectors, "weight_decay": 0.0},
        *({"params": part, "weight_decay": weight_decay} for part in parts),
    ]
    return EmaAdamW(groups, weight_decay=weight_decay, **arguments)


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Returns neighbours of REDUCE_BUCKET elements at most together; a larger one is by itself.

    ZeRO-1 shares out each group by itself, so its gradients can be reduced when they are there.
    """
    buckets: list[list[nn.Parameter]] = [[]]
    for parameter in parameters:
        held = sum(other.numel() for other in buckets[-1])
        if held and held + parameter.numel() > REDUCE_BUCKET:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets
