"""Weights that ZeRO-3 gathers for a forward pass are let go behind it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from esolm.pipeline.parallel.layout import Layout
from tests.dist.layouts import FOUR_RANKS, TWO_RANKS
from tests.dist.ranks import run_ranks


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "fp8"),
    [("DP2 ZeRO-3", "none"), ("DP2 ZeRO-3", "rowwise"), ("TP2 x DP2 ZeRO-3", "none")],
)
def test_no_view_of_a_gathered_matrix_is_kept(name: str, fp8: str, tmp_path: Path) -> None:
    """A view would keep its memory until the backward pass, the parameter itself does not."""
    if fp8 != "none" and find_spec("torchao") is None:
        pytest.skip("the optional extra fp8 is not installed")
    layout = (TWO_RANKS | FOUR_RANKS)[name]
    case = {"layout": layout, "model": "grouped", "precision": "bf16", "fp8": fp8}
    ranks = Layout(**layout).world_size
    answers = run_ranks("views_kept", ranks, [case], tmp_path, 240, "tests.dist.gathered_worker")
    assert answers == [[0, 15]]  # five matrices of each of three blocks
