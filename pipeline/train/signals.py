"""Stopping on request: the step is finished, a checkpoint written, every rank leaves together."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Notes a stop signal to this rank, and asks all ranks whether any of them got one."""

    def __init__(self, device: torch.device) -> None:
        self.signal_name: str | None = None
        self._flag = torch.zeros(1, dtype=torch.int32, device=device)
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; collective over all ranks."""
        self._flag.fill_(int(self.signal_name is not None))
        dist.all_reduce(self._flag, op=dist.ReduceOp.MAX)
        return bool(self._flag.item())
