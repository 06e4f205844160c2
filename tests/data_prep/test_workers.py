"""Worker processes that are killed (`esolm.data_prep.workers`)."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esolm.data_prep.errors import EsolmError
from esolm.data_prep.progress import ProgressBar
from esolm.data_prep.workers import run_tasks


def work_or_fall(done: Path, task: int, add: Callable[[int], None]) -> dict[str, int]:
    """A task for `run_tasks`: the last of three is killed, the others are long at work."""
    add(1)
    if task == 2:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)
    done.touch()
    return {}


@pytest.mark.parametrize("_", range(3))
def test_the_last_worker_is_watched(_: int, tmp_path: Path) -> None:
    progress = ProgressBar("test", 3, shown=False)
    with pytest.raises(EsolmError, match="A worker process was killed"):
        run_tasks(tmp_path / "done", [0, 1, 2], 3, progress, work_or_fall)
    assert not (tmp_path / "done").exists(), "they ended when it was killed"
