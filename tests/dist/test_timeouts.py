"""Every process group has the run's timeout, whoever made it."""

from pathlib import Path

import pytest

from tests.dist.ranks import run_ranks

LAYOUTS = [
    {"tp": 2, "pp": 1, "dp": 1, "zero": 1},
    {"tp": 1, "pp": 2, "dp": 1, "zero": 1},
    {"tp": 1, "pp": 1, "dp": 2, "zero": 3},
]


@pytest.mark.dist
def test_no_group_keeps_the_default(tmp_path: Path) -> None:
    """The workers ask for 60 seconds."""
    cases = [{"layout": layout, "out": str(tmp_path)} for layout in LAYOUTS]
    for found in run_ranks("timeouts", 2, cases, tmp_path, 120):
        assert len(found) > 5
        assert set(found) == {60.0}
