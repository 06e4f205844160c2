"""Whether a run still saves: where a checkpoint fails, the log says so and training goes on."""

import os
import re
import shutil
from pathlib import Path

from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.sections import RunConfig

TAIL_BYTES = 1 << 20
FULL_BYTES = 1 << 16
# As the checkpointer and the trainer say it.
_FAILED = re.compile(r"ERROR (?:the checkpoint of step (\d+) (?:failed|could not be written).*)")


def save_problem(directory: RunDirectory, config: RunConfig, step: int, newest: int) -> str | None:
    """What went wrong with the checkpoints after the newest valid one; None if nothing did.

    step: the last step that is known of; newest: that of the newest valid checkpoint, or 0. By the
    log of rank 0, and where that could not be written, by the checkpoints that are missing. On a
    full disk neither log nor metrics tell of anything.
    """
    if shutil.disk_usage(directory.path).free < FULL_BYTES:
        return f"no space is left on the disk of {directory.path}"
    failures = {
        int(match[1]): match[0].removeprefix("ERROR ")
        for match in _FAILED.finditer(_tail(directory.logs / "rank_0.log"))
        if newest < int(match[1]) <= step
    }
    every = config.checkpoint.every_steps
    # One may be on its way to the disk, and the next one wait for it.
    missing = (step - newest) // every - 2
    if failures:
        last = max(failures)
        times = f"{len(failures)} saves since step {newest}" if len(failures) > 1 else "a save"
        return f"{times} failed: {failures[last]}"
    if missing > 0:
        return f"no checkpoint since step {newest}, though one is due every {every} steps"
    return None


def _tail(log: Path) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode(errors="replace")
