"""What a start frees goes back to the system, though later blocks lie behind it."""

import platform
from pathlib import Path

import pytest
import torch

from esolm.pipeline.parallel.host_memory import freed_blocks_go_back

BLOCK, COUNT = 4 << 20, 50


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_blocks_go_back_between_kept_ones() -> None:
    with freed_blocks_go_back():
        before, kept, freed = resident(), [], []
        for _ in range(COUNT):
            freed.append(torch.ones(BLOCK // 4))
            kept.append(torch.ones(BLOCK // 400))
        full = resident() - before
        freed.clear()
        left = resident() - before
    assert full - left > 0.9 * COUNT * BLOCK
