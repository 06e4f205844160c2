"""Traces of chosen steps by PyTorch's profiler."""

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

logger = logging.getLogger(__name__)


class StepProfiler:
    """Profiles the steps of this process that are asked for, into one trace file."""

    def __init__(self, steps: range, trace: Path) -> None:
        self._steps, self._trace = steps, trace
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Starts or ends the profile; called before each step, with its number."""
        if step in self._steps and self._profile is None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
        elif step not in self._steps:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is being made."""
        if self._profile is None:
            return
        finished, self._profile = self._profile, None
        finished.stop()
        try:
            self._trace.parent.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(self._trace))
        except OSError as error:  # a full disk must not end a run
            logger.warning("the profile could not be written: %s", error)
            return
        logger.info("profile written to %s", self._trace)
