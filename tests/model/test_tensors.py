"""The table of tensors against the modules of the network, for every architecture."""

from dataclasses import replace

import pytest

from esolm.model.config import ModelConfig
from esolm.model.network import Network
from esolm.model.sharding import is_sharded
from esolm.model.tensors import network_tensors
from esolm.pipeline.parallel.single import single_process
from tests.model.conftest import every_architecture, small_config


@pytest.mark.parametrize("config", every_architecture(), ids=lambda _: "")
def test_the_table_is_the_network(config: ModelConfig) -> None:
    """Names, shapes and splits, in the order of registration; of all combinations."""
    network = Network(config, single_process())
    actual = dict(network.named_parameters())
    table = network_tensors(config)
    assert list(table) == list(actual)
    for name, parameter in actual.items():
        tensor = table[name]
        assert tensor.name == name
        assert tensor.shape == tuple(parameter.shape), name
        assert (tensor.split is not None) == is_sharded(parameter), name
        if tensor.split is not None:
            assert tensor.split == parameter.partition_dim, name  # type: ignore[attr-defined]
        assert tensor.vocabulary == (tensor.shape[0] == config.vocab_size), name


def test_a_rank_holds_its_share_and_the_padding() -> None:
    table = network_tensors(replace(small_config(), vocab_size=11))
    assert table["embedding.tokens.weight"].local(2) == 6 * 12
    assert table["head.output.bias"].local(3) == 4
    assert table["blocks.0.attention.qkv.weight"].local(2) == 18 * 12
    assert table["blocks.0.mlp.down.weight"].local(2) == table["blocks.0.mlp.down.weight"].numel / 2
    assert table["blocks.0.norm1.weight"].local(2) == 12


def test_ranks_split_heads_of_keys_and_values_or_share_them() -> None:
    table = network_tensors(small_config(hidden_size=16, num_heads=8, num_kv_heads=2, qk_norm=True))
    kv, q = table["blocks.0.attention.qkv.kv"], table["blocks.0.attention.qkv.q"]
    assert kv.shape == (2 * 2 * 2, 16)
    assert [kv.split_over(ranks) for ranks in (1, 2, 4, 8)] == [0, 0, None, None]
    assert [kv.local(ranks) for ranks in (1, 2, 4, 8)] == [128, 64, 128, 128]
    assert [q.local(ranks) for ranks in (1, 2, 4, 8)] == [256, 128, 64, 32]
    assert [kv.is_partial(ranks) for ranks in (1, 2, 4)] == [False, False, True]
    assert table["blocks.0.attention.q_norm.weight"].is_partial(2)
    assert not table["blocks.0.norm1.weight"].is_partial(2)


def test_both_places_of_a_tied_weight_are_split() -> None:
    """A last stage holds a copy, which is not in the table under its own name."""
    config = small_config(tied_embeddings=True)
    assert "head.output.weight" not in network_tensors(config)
    assert is_sharded(Network(config, single_process()).head.output.weight)  # type: ignore[arg-type]
