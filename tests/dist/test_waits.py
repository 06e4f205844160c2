"""How often a step would have the host wait for a GPU."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.layouts import SINGLE
from tests.dist.ranks import run_ranks

MOST_READS = 7
OBJECTIVES = ("esolm_b", "mdlm", "bd3lm")


@pytest.mark.check
@pytest.mark.dist
def test_a_step_waits_no_longer_for_more_micro_batches(tmp_path: Path) -> None:
    """It reads loss, norm, what DeepSpeed asks; for passes: `tests/model/test_waits.py`."""
    cases: list[dict[str, Any]] = [
        {
            "layout": {**SINGLE, "zero": zero},
            "objective": objective,
            "precision": precision,
            "micro_batch_size": rows,
            "skip_multiple": 2,
        }
        for zero, precision in ((1, "fp32"), (1, "bf16"), (2, "bf16"))
        for objective in OBJECTIVES
        for rows in (4, 1)
    ]
    found = run_ranks("waits", 1, cases, tmp_path, 300, "tests.dist.waits_worker")
    assert {synchronisations for _, synchronisations in found} == {0}
    few, many = ([reads for reads, _ in some] for some in (found[::2], found[1::2]))
    assert few == many
    assert max(few) <= MOST_READS
