"""What all ranks must decide together between two steps: to stop, and to save by the clock."""

import signal
import time
from dataclasses import dataclass
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class Requests:
    """stop: any rank was asked to stop. save: a checkpoint is due by the clock of rank 0."""

    stop: bool
    save: bool


class RequestPoll:
    """Notes stop signals to this rank and the time since the last save; asks all ranks for theirs.

    A stopped run finishes its step, writes a checkpoint, and every rank leaves together.
    """

    def __init__(self, device: torch.device, save_every_minutes: float) -> None:
        self._stop = False
        self._save_every = save_every_minutes * 60.0
        self._flags = torch.zeros(2, dtype=torch.int32, device=device)
        self.saved()
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def saved(self) -> None:
        """Starts the time to the next save anew."""
        self._saved_at = time.monotonic()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def agree(self) -> Requests:
        """Collective over all ranks."""
        due = self._save_every > 0 and time.monotonic() - self._saved_at >= self._save_every
        self._flags[0] = int(self._stop)
        self._flags[1] = int(due and dist.get_rank() == 0)
        dist.all_reduce(self._flags, op=dist.ReduceOp.MAX)
        stop, save = self._flags.tolist()
        return Requests(bool(stop), bool(save))
