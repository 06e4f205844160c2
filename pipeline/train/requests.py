"""What all ranks must decide together between two steps: to stop, and to save by the clock."""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from esolm.pipeline.launch.stop import note_stop_signals, stop_asked


@dataclass(frozen=True)
class Requests:
    """What the ranks have agreed on.

    stop: any rank was asked to stop. save: a checkpoint is due by the clock of rank 0.
    """

    stop: bool
    save: bool


class RequestPoll:
    """Notes stop signals to this rank and the time since the last save; asks all ranks for theirs.

    A stopped run finishes its step, writes a checkpoint, and every rank leaves together.
    """

    def __init__(self, device: torch.device, save_every_minutes: float) -> None:
        self._save_every = save_every_minutes * 60.0
        self._flags = torch.zeros(2, dtype=torch.int32, device=device)
        self.saved()
        note_stop_signals()

    def saved(self) -> None:
        """Starts the time to the next save anew."""
        self._saved_at = time.monotonic()

    def agree(self) -> Requests:
        """Returns what any rank requests; collective over all ranks."""
        due = self._save_every > 0 and time.monotonic() - self._saved_at >= self._save_every
        self._flags[0] = int(stop_asked())
        self._flags[1] = int(due and dist.get_rank() == 0)
        dist.all_reduce(self._flags, op=dist.ReduceOp.MAX)
        stop, save = self._flags.tolist()
        return Requests(bool(stop), bool(save))
