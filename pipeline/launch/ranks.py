"""Starts the ranks of a run on this machine, over torchrun's process layer.

torchrun itself turns a worker's exit code 85 into 1 and dies on SIGUSR1; here the first failure's
code is returned as it is, stop signals are handed on to every rank, and no rank outlives the
launcher.
"""

import contextlib
import logging
import os
import random
import signal
import socket
import sys
from types import FrameType

from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    RunProcsResult,
    start_processes,
)
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from esolm.data_prep.processes import die_with_parent
from esolm.pipeline.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_RESUME_ME
from esolm.pipeline.launch.stop import (
    STOP_SIGNALS,
    hold_stop_signals,
    release_stop_signals,
    stop_asked,
)

LAUNCHER = "ESOLM_LAUNCHER_PID"
MEETING_PORTS = range(20_000, 29_000)


def die_with_launcher() -> None:
    """Has the kernel kill this rank when its launcher is gone; does nothing in any other process.

    Stop signals that the launcher held back while this rank started come now.

    torch starts each rank in a session of its own, so a kill -9 of the launcher and of its process
    group would leave the ranks training, beside whoever resumes the run next.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    die_with_parent(int(launcher))
    release_stop_signals()


def launch(command: list[str], num_ranks: int) -> int:
    """Runs `python -m esolm COMMAND...` as num_ranks processes; returns the run's exit code.

    A request to stop that comes while the ranks are being started is passed on to them.
    """
    try:
        with hold_stop_signals():
            if stop_asked():
                return EXIT_RESUME_ME
            processes = _start(command, num_ranks)
            _forward_signals(processes)
            if stop_asked():  # a thread of this process, numpy's say, may have taken a signal
                for pid in processes.pids().values():
                    os.kill(pid, signal.SIGTERM)
    except SignalException:  # some ranks may run already; they end with this process
        return EXIT_RESUME_ME
    try:
        result = processes.wait()
    finally:
        processes.close()
    return EXIT_DONE if result is None else _exit_code(result)


def _exit_code(result: RunProcsResult) -> int:
    """Returns the exit code of a run whose ranks have ended, and says so if one of them failed."""
    if not result.is_failed():
        return EXIT_DONE
    codes = {failure.exitcode for failure in result.failures.values()}
    if codes == {EXIT_RESUME_ME}:
        return EXIT_RESUME_ME
    rank, first = _first_failure(result.failures)
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        print(f"error: rank {rank} (process {first.pid}) was killed by {name}", file=sys.stderr)
        return EXIT_FAILED
    if first.exitcode != EXIT_BAD_INPUT:  # which has said all
        print(f"error: rank {rank} ended with exit code {first.exitcode}", file=sys.stderr)
    return first.exitcode


def _first_failure(failures: dict[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Returns the rank that failed first and its failure: it pulled the others down with it.

    Failures are known to the second, in which one that was killed may already have pulled others
    down. No rank sends itself SIGKILL, and the launcher does so to the others half a minute later,
    so a rank that it ended within this second is the one.
    """
    second = min(failure.timestamp for failure in failures.values()) + 1
    together = {rank: each for rank, each in failures.items() if each.timestamp <= second}
    return min(
        together.items(),
        key=lambda entry: (entry[1].exitcode != -signal.SIGKILL, entry[1].timestamp),
    )


def _start(command: list[str], num_ranks: int) -> PContext:
    port = free_port()
    # It would call a stop on request an error, in red.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    return start_processes(
        name="esolm",
        entrypoint=sys.executable,
        args={rank: ("-m", "esolm", *command) for rank in range(num_ranks)},
        envs={rank: _environment(rank, num_ranks, port) for rank in range(num_ranks)},
        logs_specs=DefaultLogsSpecs(),
    )


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """Returns what a rank's environment has beyond this process's own."""
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    return {
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Returns a port for the ranks to meet at, which rank 0 takes only after it has imported torch.

    It lies below those that the kernel hands out by itself: another process's connection would take
    such a port meanwhile.
    """
    for port in random.sample(MEETING_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port found among {MEETING_PORTS.start} to {MEETING_PORTS.stop - 1}")


def _forward_signals(processes: PContext) -> None:
    def forward(number: int, frame: FrameType | None) -> None:
        for pid in processes.pids().values():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # that rank has left already

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
