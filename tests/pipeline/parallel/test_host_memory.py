"""What a start frees goes back to the system, though later blocks lie behind it."""

import platform
import subprocess
import sys

import pytest

# In a process of its own: what this one has freed before would be used again, and hide it.
SCRIPT = """
from pathlib import Path
import torch
from esolm.pipeline.parallel.host_memory import freed_blocks_go_back

def resident():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])

torch.ones(2 << 20)  # its end teaches glibc to keep blocks up to 8 MiB
with freed_blocks_go_back():
    kept, freed = [], []
    for _ in range(50):
        freed.append(torch.ones(1 << 20))
        kept.append(torch.ones(10_000))
    full = resident()
    freed.clear()
    print(full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_blocks_go_back_between_kept_ones() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) > 0.9 * 50 * (4 << 20)
