"""The last collectives of every rank, kept in memory and written down where a run hangs.

torch's `torchfrtrace` reads NCCL's files and says what the ranks wait for; see docs/watching.md.
"""

import os
from pathlib import Path

import torch

# How many collectives torch keeps; an entry has a few hundred bytes.
NUM_COLLECTIVES = 2000


def trace_prefix(logs: Path) -> Path:
    """Returns the path of a rank's trace as far as the rank's number, which comes after it."""
    return logs / "nccl_trace_rank_"


def record_collectives(logs: Path) -> None:
    """Turns the recorder on; called before the process groups are made.

    NCCL writes its own record when a collective times out. The watchdog, which comes first, has it
    written by `dump_collectives`.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(NUM_COLLECTIVES))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(trace_prefix(logs)))


def dump_collectives(logs: Path, rank: int, device: torch.device) -> None:
    """Writes this rank's record. The main thread may hang meanwhile."""
    import torch._C._distributed_c10d as c10d

    # NCCL has a recorder of its own, which builds without CUDA do not know.
    name = "_dump_nccl_trace" if device.type == "cuda" else "_dump_fr_trace"
    trace_prefix(logs).with_name(f"{trace_prefix(logs).name}{rank}").write_bytes(
        getattr(c10d, name)()
    )
