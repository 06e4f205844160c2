"""Builds the network of every architecture in a tensor-parallel rank, for the table of tensors."""

from typing import Any

from megatron.core import parallel_state

from esolm.model.network import Network
from esolm.model.sharding import is_sharded
from esolm.pipeline.parallel.bootstrap import initialize_groups
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.parallel.module import parallel_config
from tests.dist import workers
from tests.model.conftest import every_architecture


def parameters(layout: dict[str, Any]) -> Any:
    """Of every architecture the (name, local shape, split) of each parameter of this rank."""
    split = Layout(**layout)
    parallel_state.destroy_model_parallel()
    initialize_groups(split)
    networks = (Network(config, parallel_config(split)) for config in every_architecture())
    return [
        [(name, list(p.shape), split_of(p)) for name, p in network.named_parameters()]
        for network in networks
    ]


def split_of(parameter: Any) -> int | None:
    """The dimension that megatron-core's attributes name."""
    return parameter.partition_dim if is_sharded(parameter) else None


if __name__ == "__main__":
    workers.main(globals())
