"""Rotary positions."""

import math

import pytest
import torch

from esolm.model.rotary import rotary_angles, rotary_frequencies, rotate
from esolm.pipeline.export.bundle import layers_esolm


@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_angles_to_long_positions(base: float) -> None:
    positions = torch.tensor([[0, 1, 77, 8191]])
    cos, sin = rotary_angles(positions, 8, base)
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
    assert torch.equal(rotary_frequencies(head_dim, 10000.0, torch.device("cpu")), published)
    positions = torch.tensor([[1, 1023]])
    angles = positions[..., None] * published
    for found in (
        rotary_angles(positions, head_dim, 10000.0),
        layers_esolm.rotary_angles(positions, head_dim, 10000.0),
    ):
        for values, expected in zip(found, (angles.cos(), angles.sin()), strict=True):
            assert torch.equal(values.flatten(), expected.flatten())


def test_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)

    def score(i: int, j: int) -> float:
        rotated = [
            rotate(x, *rotary_angles(torch.tensor([[p]]), 8, 10000.0)) for x, p in ((q, i), (k, j))
        ]
        return float((rotated[0] * rotated[1]).sum())

    for shift in (1, 10, 500):
        assert score(7 + shift, 3 + shift) == pytest.approx(score(7, 3), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-3)
    assert score(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_length_is_kept_and_halves_are_paired() -> None:
    x = torch.randn(2, 3, 4, 8)
    angles = rotary_angles(torch.arange(6).view(2, 3), 8, 10000.0)
    rotated = rotate(x, *angles)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[0, 0], x[0, 0])
    pairs = torch.stack([x[..., :4], x[..., 4:]]).norm(dim=0)
    turned = torch.stack([rotated[..., :4], rotated[..., 4:]]).norm(dim=0)
    torch.testing.assert_close(turned, pairs)


def test_precision_of_the_result_is_that_of_the_input() -> None:
    angles = rotary_angles(torch.arange(3)[None], 8, 10000.0)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert rotate(torch.ones(1, 3, 1, 8, dtype=dtype), *angles).dtype is dtype
