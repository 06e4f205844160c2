"""Initial weights are a function of seed and name, whatever the split of the tensors."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from esolm.model.initialize import initialize
from esolm.model.network import Network
from esolm.model.sharding import is_sharded, local_part
from esolm.model.tensors import network_tensors
from esolm.pipeline.parallel.single import single_process
from tests.model.conftest import small_config

CONFIG = small_config(num_heads=6, hidden_size=24, ffn_hidden_size=36)


def full_weights(seed: int = 0, vocab_size: int = 11) -> dict[str, nn.Parameter]:
    config = dataclasses.replace(CONFIG, vocab_size=vocab_size)
    network = Network(config, single_process())
    initialize(network.named_parameters(), config, seed, 0, 1)
    return dict(network.named_parameters())


def shards(full: nn.Parameter, name: str, size: int) -> list[nn.Parameter]:
    """Empty parameters of the local shapes that `size` tensor-parallel ranks would hold."""
    parts = []
    for _ in range(size):
        shape = list(full.shape)
        if is_sharded(full):
            dim: int = full.partition_dim  # type: ignore[attr-defined]
            shape[dim] = -(-shape[dim] // size)
        part = nn.Parameter(torch.full(shape, torch.nan))
        for attribute in ("tensor_model_parallel", "partition_dim"):
            if hasattr(full, attribute):
                setattr(part, attribute, getattr(full, attribute))
        parts.append(part)
    return parts


def joined(parts: list[nn.Parameter]) -> Tensor:
    if not is_sharded(parts[0]):
        for part in parts[1:]:
            assert torch.equal(part, parts[0])
        return parts[0].detach()
    return torch.cat([part.detach() for part in parts], dim=parts[0].partition_dim)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_weights_do_not_depend_on_the_tensor_parallel_degree(size: int) -> None:
    """11 ids are padded to 12 over 2 and over 3 ranks; the padding is zero."""
    for name, full in full_weights().items():
        parts = shards(full, name, size)
        for rank, part in enumerate(parts):
            assert network_tensors(CONFIG)[name].shape == tuple(full.shape)
            initialize([(name, part)], CONFIG, 0, rank, size)
        whole = joined(parts)
        rows = full.shape[0]
        assert torch.equal(whole[:rows], full), name
        assert not whole[rows:].any(), name


@pytest.mark.parametrize("size", [1, 2, 3])
def test_local_part_cuts_and_pads(size: int) -> None:
    tensors = network_tensors(dataclasses.replace(CONFIG, vocab_size=10))
    for name, full in full_weights(vocab_size=10).items():
        parts = shards(full, name, size)
        cut = [local_part(full.detach(), tensors[name], rank, size) for rank in range(size)]
        assert all(tuple(c.shape) == tuple(p.shape) for c, p in zip(cut, parts, strict=True))
        if is_sharded(full):
            whole = torch.cat(cut, dim=full.partition_dim)  # type: ignore[attr-defined]
            assert torch.equal(whole[: full.shape[0]], full)
        else:
            assert all(torch.equal(c, full) for c in cut)


def test_sizes_of_the_draws() -> None:
    weights = {name: p.detach() for name, p in full_weights().items()}
    for name, weight in weights.items():
        if "norm" in name:
            assert (weight == 1).all()
        elif name.endswith("bias") or "modulation" in name or name == "head.output.weight":
            assert not weight.any()
        else:
            std = 0.02 / (2 if name.endswith(("attention.out.weight", "mlp.down.weight")) else 1)
            spread = 4 * (2 * weight.numel()) ** -0.5
            assert float(weight.std()) == pytest.approx(std, rel=spread), name


def test_seed_and_name_matter() -> None:
    weights, others = full_weights(), full_weights(seed=1)
    name = "blocks.0.attention.qkv.weight"
    assert not torch.equal(weights[name], others[name])
    assert not torch.equal(weights[name], weights["blocks.1.attention.qkv.weight"])


def test_first_loss_with_adaln_is_log_of_the_vocabulary() -> None:
    network = Network(CONFIG, single_process())
    initialize(network.named_parameters(), CONFIG, 0, 0, 1)
    logits = network.head.logits(torch.randn(5, 24))
    log_p = logits.log_softmax(-1)
    predicted = torch.arange(11) != CONFIG.mask_id
    torch.testing.assert_close(log_p[:, predicted], torch.full((5, 10), 0.1).log())
