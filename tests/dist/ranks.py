"""Runs a worker function in several ranks, under a timeout, and returns rank 0's answer."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from esolm.pipeline.launch.ranks import free_port
from tests.processes import ROOT, environment


def run_ranks(
    worker: str,
    num_ranks: int,
    arguments: Any,
    folder: Path,
    timeout: float,
    module: str = "tests.dist.workers",
    device: str = "cpu",
) -> Any:
    """Calls `<module>.<worker>(arguments)` in num_ranks processes.

    device: "cpu", over gloo also where there are GPUs, or "cuda", a GPU for each rank over NCCL.
    A rank that fails or outlives the timeout fails the test with the log of every rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answer = folder / "answer.json"
    processes, logs = [], []
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    for rank, variables in enumerate(rank_environment(num_ranks)):
        logs.append(folder / f"rank_{rank}.log")
        command = [sys.executable, "-W", "ignore", "-m", module]
        command += [worker, json.dumps(arguments), str(answer)]
        with logs[-1].open("w") as log:
            processes.append(
                subprocess.Popen(command, env=variables | hidden, stdout=log, stderr=log, cwd=ROOT)
            )
    try:
        failed = _wait(processes, timeout)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failed:
        texts = "\n".join(f"--- {log}\n{log.read_text()[-4000:]}" for log in logs)
        raise AssertionError(f"{worker} on {num_ranks} ranks: {failed}\n{texts}")
    return json.loads(answer.read_text())


def rank_environment(num_ranks: int) -> list[dict[str, str]]:
    """The environment of each rank of one job."""
    port = free_port()
    return [
        {
            **environment(),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(num_ranks)
    ]


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> str:
    """What went wrong, or an empty string once every rank has left with 0."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if any(code not in (None, 0) for code in codes):
            return f"exit codes {codes}"
        if all(code == 0 for code in codes):
            return ""
        time.sleep(0.05)
    return f"no end after {timeout} s"
