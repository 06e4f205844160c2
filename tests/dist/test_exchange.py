"""Heads exchanged for tokens are heads of whole rows, and their gradients come back."""

from pathlib import Path

import pytest

from tests.dist.ranks import run_ranks

CP2 = {"tp": 1, "pp": 1, "dp": 2, "zero": 1, "cp": 2}
CP4 = {"tp": 1, "pp": 1, "dp": 1, "zero": 1, "cp": 4}


@pytest.mark.dist
@pytest.mark.check
def test_exchanged_tokens_are_a_permutation(tmp_path: Path) -> None:
    """Of one stream, of two, and of two of which the noised one lacks tokens in front."""
    cases = [
        {"layout": layout, "streams": streams}
        for layout in (CP2, CP4)
        for streams in ([12], [8, 8], [4, 12])
    ]
    answers = run_ranks("exchanges", 4, cases, tmp_path, 120, "tests.dist.exchange_worker")
    assert answers == [[]] * len(cases)
