"""What bf16 ZeRO-1 sends of its gradients, and when."""

from pathlib import Path
from typing import Any

import pytest

from tests.dist.layouts import FOUR_RANKS, TWO_RANKS
from tests.dist.ranks import run_ranks

BF16: dict[str, Any] = {"precision": "bf16", "micro_batch_size": 2}


def sent(ranks: int, cases: list[dict[str, Any]], folder: Path) -> Any:
    """Of every case and rank: bytes scattered, those beside the backward passes, elements."""
    worker = "beside_the_backward_pass"
    return run_ranks(worker, ranks, cases, folder, 240, "tests.dist.volume_worker")


@pytest.mark.dist
@pytest.mark.check
def test_gradients_pass_once_and_beside_the_backward_pass(tmp_path: Path) -> None:
    cases = [
        {**BF16, "layout": TWO_RANKS["DP2 ZeRO-1"], "bucket": bucket}
        for bucket in (4000, 50_000_000)
    ]
    for answers in sent(2, cases, tmp_path):
        for scattered, beside, elements in answers:
            assert 4 * elements <= scattered < 1.01 * 4 * elements
            assert beside == scattered


@pytest.mark.dist
@pytest.mark.check
def test_stages_send_all_but_what_backward_passes_leave_incomplete(tmp_path: Path) -> None:
    """The embedding gets two gradients from a micro-batch, and what is tied another sum later."""
    layout = FOUR_RANKS["PP2 x DP2"]
    cases = [
        {**BF16, "layout": layout, "model": model, "bucket": 4000}
        for model in ("modern", "paper", "tied")
    ]
    modern, paper, tied = sent(4, cases, tmp_path)
    for scattered, _, elements in (*modern, *paper, *tied):
        assert scattered == pytest.approx(4 * elements, rel=0.01)
    for answers, stages_with_late in ((modern, 1), (paper, 1), (tied, 2)):
        for rank, (scattered, beside, _) in enumerate(answers):
            if rank // 2 < stages_with_late:
                assert scattered / 3 < beside < scattered  # half of so small a stage is embedding
            else:
                assert beside == scattered
