"""Which rank is said to have ended a run."""

import time

import pytest
from torch.distributed.elastic.multiprocessing import RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from esolm.pipeline.launch.ranks import _exit_code

KILLED = "error: rank 1 (process 101) was killed by SIGKILL\n"
ENDED = "error: rank 0 ended with exit code 1\n"


def failed(*endings: tuple[int, float]) -> RunProcsResult:
    """The ranks' exit codes and the seconds after which they were seen."""
    failures = {}
    for rank, (exit_code, seconds) in enumerate(endings):
        failures[rank] = ProcessFailure(rank, 100 + rank, exit_code, error_file="")
        failures[rank].timestamp = int(time.time() + seconds)
    return RunProcsResult(failures=failures)


@pytest.mark.parametrize(
    ("endings", "message"),
    [
        (((1, 0), (-9, 0)), KILLED),  # pulled down before anybody looked
        (((1, 0), (-9, 1)), KILLED),
        (((1, 0), (-9, 30)), ENDED),  # the launcher's own kill
        (((1, 0), (-15, 0)), ENDED),
        (((1, 1), (-11, 0)), KILLED.replace("KILL", "SEGV")),
    ],
)
def test_the_first_failure_tells_why(
    endings: tuple[tuple[int, float], ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(failed(*endings)) == 1
    assert capsys.readouterr().err == message
