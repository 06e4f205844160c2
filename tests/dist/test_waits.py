"""How often a step would have the host wait for a GPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.layouts import SINGLE
from tests.dist.ranks import run_ranks

MOST_READS = 7
OBJECTIVES = ("esolm_b", "mdlm", "bd3lm")
WAYS: list[dict[str, Any]] = [
    {"layout": SINGLE},
    {"layout": SINGLE, "precision": "bf16"},
    {"layout": SINGLE, "deepspeed": True},
    {"layout": SINGLE, "deepspeed": True, "precision": "bf16"},
    {"layout": {**SINGLE, "zero": 2}, "deepspeed": True, "precision": "bf16"},
]


@pytest.mark.check
@pytest.mark.dist
def test_a_step_waits_no_longer_for_more_micro_batches(tmp_path: Path) -> None:
    """It reads loss, norm, what DeepSpeed asks; for passes: `tests/model/test_waits.py`."""
    cases = [
        {
            **how,
            "objective": objective,
            "micro_batch_size": rows,
            "skip_multiple": 2,
        }
        for how in WAYS
        for objective in OBJECTIVES
        for rows in (4, 1)
    ]
    found = run_ranks("waits", 1, cases, tmp_path, 300, "tests.dist.waits_worker")
    assert {synchronisations for _, synchronisations in found} == {0}
    few, many = ([reads for reads, _ in some] for some in (found[::2], found[1::2]))
    assert few == many
    assert max(few) <= MOST_READS
