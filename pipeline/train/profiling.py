"""Traces of chosen steps by PyTorch's profiler."""

import logging
import re
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

logger = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
    """FIRST-LAST as the steps it names, counted from 1; empty text names none.

    Not FIRST:LAST, which YAML reads as a number to base 60. Raises ValueError.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or not 0 < int(match[1]) <= int(match[2]):
        raise ValueError(f"'{text}' is not FIRST-LAST with 0 < FIRST <= LAST")
    return range(int(match[1]), int(match[2]) + 1)


def steps_problems(text: str) -> list[str]:
    """What is wrong with the setting, in words."""
    try:
        parse_steps(text)
    except ValueError as error:
        return [f"train.profile_steps: {error}"]
    return []


class StepProfiler:
    """Profiles the steps of this process that are asked for, into one trace file."""

    def __init__(self, steps: range, trace: Path) -> None:
        self._steps, self._trace = steps, trace
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Called before each step, with its number."""
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
