"""Weights that ZeRO-3 gathers for a forward pass are let go behind it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.dist.layouts import TWO_RANKS
from tests.dist.ranks import run_ranks


@pytest.mark.dist
@pytest.mark.parametrize("fp8", ["none", "rowwise"])
def test_no_view_of_a_gathered_matrix_is_kept(fp8: str, tmp_path: Path) -> None:
    """A view would keep its memory until the backward pass, the parameter itself does not."""
    if fp8 != "none" and find_spec("torchao") is None:
        pytest.skip("the optional extra fp8 is not installed")
    case = {"layout": TWO_RANKS["DP2 ZeRO-3"], "model": "grouped", "precision": "bf16", "fp8": fp8}
    answers = run_ranks("views_kept", 2, [case], tmp_path, 240, "tests.dist.gathered_worker")
    assert answers == [[0, 15]]  # five matrices of each of three blocks
