"""Parameters and pipeline cuts of the plan against the network and the engine's own cutter."""

import random

import pytest

from esolm.model.network import Network
from esolm.model.tensors import layer_tensors
from esolm.pipeline.parallel.bootstrap import import_deepspeed
from esolm.pipeline.parallel.single import single_process
from esolm.pipeline.plan.shapes import parameters_by_part, stage_size
from esolm.pipeline.plan.stages import stage_bounds
from tests.model.conftest import ARCHITECTURES, small_config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_of_the_network_is_planned(architecture: str) -> None:
    config = small_config(**ARCHITECTURES[architecture])
    network = Network(config, single_process())
    total = sum(parameter.numel() for parameter in network.parameters())
    assert sum(parameters_by_part(config).values()) == total
    assert stage_size(config, 0, config.num_layers + 2, 1).parameters == total


def test_a_rank_holds_its_share_and_the_padded_vocabulary() -> None:
    config = small_config(vocab_size=11)
    tokens = layer_tensors(config, 0)[0]
    assert tokens.local(1) == 11 * 12
    assert tokens.local(2) == 6 * 12


def test_tied_embeddings_are_held_twice_where_their_stages_differ() -> None:
    tied, untied = small_config(tied_embeddings=True), small_config()
    both, weight = untied.num_layers + 2, layer_tensors(tied, 0)[0].numel
    assert (
        stage_size(untied, 0, both, 1).parameters - weight
        == stage_size(tied, 0, both, 1).parameters
    )
    for bounds in ((0, 2), (2, both)):
        assert stage_size(untied, *bounds, 2) == stage_size(tied, *bounds, 2)


def test_stages_are_cut_as_the_engine_cuts_them() -> None:
    import_deepspeed()
    from deepspeed.runtime.utils import partition_balanced

    draws = random.Random(0)
    for _ in range(60):
        costs = [0.0, *[draws.choice([1.0, 1.0, 1.3])] * draws.randint(1, 14), draws.random() * 5]
        stages = draws.randint(1, len(costs))
        weights = [max(1, round(1000 * cost / max(costs))) for cost in costs]
        cuts = partition_balanced(weights=weights, num_parts=stages)
        bounds = stage_bounds(costs, stages)
        assert [first for first, _ in bounds] + [bounds[-1][1]] == [int(cut) for cut in cuts]
