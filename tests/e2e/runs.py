"""Real runs of `esolm train` as processes, on a tiny dataset."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.parallel.fragments import STATES
from tests.dist.ranks import rank_environment
from tests.processes import environment

STARTED: list[subprocess.Popen[str]] = []

CONFIG = """
run: {{dir: {run}}}
data: {{path: {data}}}
model:
  {{hidden_size: {hidden_size}, num_layers: 2, num_heads: 4, ffn_hidden_size: 1024, cond_dim: 16}}
train:
  {{steps: {steps}, global_batch_size: 4, micro_batch_size: 1, seq_len: 32, precision: fp32,
   log_every_steps: 1, valid_every_steps: 10, valid_samples: 4, timeout_minutes: 1}}
optimizer: {{lr: 1.0e-3, warmup_steps: 2, schedule: cosine}}
parallel: {{tp: 2}}
checkpoint: {{every_steps: {save_every}, keep: 2}}
"""


def write_config(
    folder: Path, data: Path, *, steps: int = 12, save_every: int = 4, hidden_size: int = 64
) -> Path:
    """A run configuration in its own folder; the run directory is `run` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(
        CONFIG.format(
            run=folder / "run",
            data=data,
            steps=steps,
            save_every=save_every,
            hidden_size=hidden_size,
        )
    )
    return config


WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def write_mixture(folder: Path, folders: dict[str, Path]) -> Path:
    """A run configuration over three sources; see the fixture `source_folders`."""
    config = write_config(folder, Path("none"))
    sources = [{"path": str(folders[name]), "weight": weight} for name, weight in WEIGHTS.items()]
    lines = config.read_text().replace("{path: none}", json.dumps({"sources": sources}))
    # The number of steps may differ from run to run.
    lines = lines.replace("schedule: cosine", "schedule: constant")
    config.write_text(lines.replace("valid_every_steps: 10", "valid_every_steps: 6"))
    return config


def sources_of(folders: dict[str, Path], **weights: float) -> str:
    """`data.sources=...` as one types it."""
    entries = (f"{{path: {folders[name]}, weight: {w}}}" for name, w in weights.items())
    return f"data.sources=[{', '.join(entries)}]"


def start(*arguments: str, packages: tuple[Path, ...] = ()) -> subprocess.Popen[str]:
    """`esolm ARGUMENTS...` as a process; packages as for `tests.processes.environment`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "esolm", *arguments],
        env=environment(*packages),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def kill_started() -> None:
    """What a failed test left running; ranks die with their launcher."""
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()
    STARTED.clear()


def start_faulty(
    kind: str, config: Path, *overrides: str, ranks: int = 1
) -> list[subprocess.Popen[str]]:
    """One process per rank and no launcher, as under srun; see `tests.e2e.faulty`."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "tests.e2e.faulty",
                kind,
                str(config),
                *overrides,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in rank_environment(ranks)
    ]
    STARTED.extend(processes)
    return processes


def finish(process: subprocess.Popen[str], expected: int, timeout: float = 120) -> str:
    """Waits for the process, checks its exit code, returns what it printed."""
    if process in STARTED:
        STARTED.remove(process)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"no end after {timeout} s:\n{output[-4000:]}") from None
    assert process.returncode == expected, f"exit code {process.returncode}:\n{output[-4000:]}"
    return output


def wait_until(condition: Callable[[], Any], timeout: float = 120, pause: float = 0.002) -> Any:
    """The first true answer of the condition, which nothing may end before."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        for process in STARTED:
            if process.poll() not in (None, 0, -signal.SIGKILL):
                finish(process, 0)
        time.sleep(pause)
    raise AssertionError(f"it did not happen within {timeout} s")


def ranks_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """The launcher's rank processes, in the order of their ranks."""
    children = psutil.Process(launcher.pid).children()
    return sorted(
        (child for child in children if "RANK" in child.environ()),
        key=lambda child: int(child.environ()["RANK"]),
    )


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, 0 before there is one."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every training line of metrics.jsonl, in its order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def states(run: Path) -> dict[str, torch.Tensor]:
    """Weights, moments and EMA of a run's newest checkpoint."""
    reader = CheckpointReader(run)
    return {
        f"{state}/{name}": tensor
        for state in STATES
        for name, tensor in reader.tensors(state).items()
    }


def different(one: Path, other: Path) -> list[str]:
    """Names of the tensors that are not equal bit by bit at the ends of two runs."""
    a, b = states(one), states(other)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
