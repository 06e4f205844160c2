"""Rotary positions."""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from esolm.model.config import Rotation
from esolm.model.rotary import rotary_angles, rotary_frequencies, rotate
from esolm.pipeline.export.bundle import layers_esolm
from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from tests.model.conftest import small_config


def bundle_angles(positions: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Those of a bundle's only layer, [B, S, 1, 1, K/2]."""
    config = EsoLMConfig(
        num_hidden_layers=1, num_attention_heads=1, hidden_size=rotation.head_dim,
        rope_base=rotation.base, rope_factor=rotation.factor,
        rope_original_length=rotation.original_length,
    )  # fmt: skip
    found: tuple[Tensor, Tensor] = layers_esolm.rotary_angles(positions, config)[0]
    return found


@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_angles_to_long_positions(base: float) -> None:
    positions = torch.tensor([[0, 1, 77, 8191]])
    cos, sin = rotary_angles(positions, Rotation(8, base))
    assert cos.dtype is torch.float32
    assert cos.shape == (1, 4, 4)
    for column, position in enumerate([0, 1, 77, 8191]):
        for k in range(4):
            angle = position * base ** (-2 * k / 8)
            assert float(cos[0, column, k]) == pytest.approx(math.cos(angle), abs=1e-3)
            assert float(sin[0, column, k]) == pytest.approx(math.sin(angle), abs=1e-3)


@pytest.mark.parametrize("head_dim", [8, 16, 32, 64, 128])
def test_frequencies_are_the_published_ones_to_the_last_bit(head_dim: int) -> None:
    """At position 1,023 another way of rounding the same formula moves an angle by 3e-5."""
    published = 1.0 / (10000 ** (torch.arange(0, head_dim, 2).float() / head_dim))
    assert torch.equal(
        rotary_frequencies(Rotation(head_dim, 10000.0), torch.device("cpu")), published
    )
    positions = torch.tensor([[1, 1023]])
    angles = positions[..., None] * published
    for found in (
        rotary_angles(positions, Rotation(head_dim, 10000.0)),
        bundle_angles(positions, Rotation(head_dim, 10000.0)),
    ):
        for values, expected in zip(found, (angles.cos(), angles.sin()), strict=True):
            assert torch.equal(values.flatten(), expected.flatten())


@pytest.mark.parametrize("base", [100.0, 10000.0, 1e6])
@pytest.mark.parametrize("length", [64, 1024, 100_000])
@pytest.mark.parametrize("factor", [1.5, 4.0, 40.0])
def test_yarn_is_that_of_transformers_to_the_last_bit(
    base: float, length: int, factor: float
) -> None:
    rope = {
        "rope_type": "yarn", "rope_theta": base, "factor": factor,
        "original_max_position_embeddings": length,
    }  # fmt: skip
    like = LlamaConfig(hidden_size=64, num_attention_heads=1, rope_parameters=rope)
    expected, scale = ROPE_INIT_FUNCTIONS["yarn"](like, torch.device("cpu"))
    rotation = Rotation(64, base, factor, length)
    assert torch.equal(rotary_frequencies(rotation, torch.device("cpu")), expected)
    positions = torch.tensor([[0, 1, 3 * length]])
    angles = positions.float()[..., None] * expected
    for found in (rotary_angles(positions, rotation), bundle_angles(positions, rotation)):
        for values, turned in zip(found, (angles.cos(), angles.sin()), strict=True):
            assert torch.equal(values.flatten(), (turned * scale).flatten())


def test_yarn_slows_what_turns_rarely_and_only_that() -> None:
    """Base 10,000, 4 times 1,024 tokens: 1 turns 163 times in 1,024, 1e-4 a sixtieth of once."""
    plain, yarn = (
        rotary_frequencies(Rotation(64, 10000.0, factor, 1024), torch.device("cpu"))
        for factor in (1.0, 4.0)
    )
    turns = plain * 1024 / (2 * math.pi)
    assert torch.equal(yarn[turns > 42], plain[turns > 42])
    torch.testing.assert_close(yarn[turns < 0.75], plain[turns < 0.75] / 4)
    between = yarn / plain
    assert (between.diff() <= 0).all()


def test_layers_take_their_bases_in_turn() -> None:
    config = small_config(num_layers=5, rope_bases=[100.0, 20.0])
    assert config.rope_bases == (100.0, 20.0)
    assert [config.rotation(layer).base for layer in range(5)] == [100, 20, 100, 20, 100]
    assert small_config(rope_base=7.0).rotation(1).base == 7


def test_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)

    def score(i: int, j: int) -> float:
        rotated = [
            rotate(x, *rotary_angles(torch.tensor([[p]]), Rotation(8, 10000.0)))
            for x, p in ((q, i), (k, j))
        ]
        return float((rotated[0] * rotated[1]).sum())

    for shift in (1, 10, 500):
        assert score(7 + shift, 3 + shift) == pytest.approx(score(7, 3), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-3)
    assert score(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_length_is_kept_and_halves_are_paired() -> None:
    x = torch.randn(2, 3, 4, 8)
    angles = rotary_angles(torch.arange(6).view(2, 3), Rotation(8, 10000.0))
    rotated = rotate(x, *angles)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[0, 0], x[0, 0])
    pairs = torch.stack([x[..., :4], x[..., 4:]]).norm(dim=0)
    turned = torch.stack([rotated[..., :4], rotated[..., 4:]]).norm(dim=0)
    torch.testing.assert_close(turned, pairs)


def test_precision_of_the_result_is_that_of_the_input() -> None:
    angles = rotary_angles(torch.arange(3)[None], Rotation(8, 10000.0))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert rotate(torch.ones(1, 3, 1, 8, dtype=dtype), *angles).dtype is dtype
