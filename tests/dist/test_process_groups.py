"""What holds of every process group: the run's timeout, and that all hear what one finds."""

from pathlib import Path

import pytest

from tests.dist.ranks import run_ranks

LAYOUTS = [
    {"tp": 2, "pp": 1, "dp": 1, "zero": 1},
    {"tp": 1, "pp": 2, "dp": 1, "zero": 1},
    {"tp": 1, "pp": 1, "dp": 2, "zero": 3},
]


@pytest.mark.dist
def test_no_group_keeps_the_default_and_no_rank_waits_for_a_failed_first(tmp_path: Path) -> None:
    """The workers ask for 60 seconds."""
    cases = [{"layout": layout, "out": str(tmp_path)} for layout in LAYOUTS]
    answer = run_ranks("process_groups", 2, cases, tmp_path, 120)
    for found in answer["timeouts"]:
        assert len(found) > 5
        assert set(found) == {60.0}
    everyone = answer["heard_by_all"]
    assert len(everyone) == 2
    for heard in everyone:
        assert heard == [
            "found by 0",
            "ConfigError: one\ntwo",
            "2 problems",
            "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'",
            "left out: the second rank's",
        ]
