"""What a checkpoint costs in each layout: seconds blocked, seconds to durable, and reading it.

A 170 M parameter network (12 x 768, vocabulary 50,258) with fp32 weights, both moments and EMA.
Compared in the same run: an asynchronous save's blocked time with copying the same bytes in memory;
and with one process reading the same files one after the other: loading them, loading what the
first layout saved, and a whole resume, which verifies every checksum before it loads. No file is in
the system's cache at the start of any of them.

    python benchmarks/checkpointing.py
    python benchmarks/checkpointing.py --layouts single tp2 --rounds 5
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from esolm.model.config import ModelConfig
from esolm.model.flops import layer_costs
from esolm.model.objectives import EsoLM
from esolm.pipeline.checkpoint import commit
from esolm.pipeline.checkpoint.checkpointer import Checkpointer, RunState
from esolm.pipeline.parallel.bootstrap import (
    ProcessInfo,
    device_of,
    initialize_processes,
    process_info,
    shutdown_processes,
)
from esolm.pipeline.parallel.build import build_engine
from esolm.pipeline.parallel.engine import Engine, EngineConfig
from esolm.pipeline.parallel.layout import Layout

LAYOUTS = {
    "single": Layout(1, 1, 1, 1),
    "tp2": Layout(2, 1, 1, 1),
    "pp2": Layout(1, 2, 1, 1),
    "dp2-zero1": Layout(1, 1, 2, 1),
    "dp2-zero3": Layout(1, 1, 2, 3),
    "tp2-pp2": Layout(2, 2, 1, 1),
}
FIRST = "single"


def build(layers: int, layout: Layout, device: torch.device) -> Engine:
    model = ModelConfig(vocab_size=50258, mask_id=50257, num_layers=layers)
    return build_engine(
        EngineConfig(
            model=model,
            layout=layout,
            device=device,
            seed=1,
            micro_batch_size=1,
            num_micro_batches=layout.pp,
            precision="fp32",
            gradient_clipping=1.0,
            optimizer={
                "lr": 1e-4,
                "betas": (0.9, 0.95),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "ema_decay": 0.99,
            },
            layer_costs=layer_costs(model, EsoLM(50257, 0.5, 0.5).work(128)),
        )
    )


def state_of(step: int) -> RunState:
    return RunState(
        step=step,
        updates=step,
        consumed_samples=0,
        tokens=0,
        seq_len=1,
        model={},
        objective={},
        data={},
        data_path="",
        tokenizer="",
    )


def drop_cache(directory: Path) -> None:
    """Has the system forget the files' pages, so that the next read is from the disk."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_plainly(directory: Path) -> None:
    """All files in 8 MiB pieces, by rank 0."""
    if dist.get_rank() == 0:
        for path in sorted(directory.iterdir()):
            with path.open("rb", buffering=0) as file:
                while file.read(8 << 20):
                    pass


def seconds(act: Callable[[], object], from_disk: Path | None = None) -> float:
    """Until all ranks have done it, begun together."""
    if from_disk is not None:
        drop_cache(from_disk)
    dist.barrier()
    started = time.perf_counter()
    act()
    dist.barrier()
    return time.perf_counter() - started


@dataclass
class Round:
    """Seconds of one save, and of reading it back."""

    copy: float
    blocked: float
    durable: float
    plain: float
    load: float
    load_of_first: float
    resume: float


class Measurement:
    """Checkpoints of one layout, in a folder of its own beside those of the first layout."""

    def __init__(self, engine: Engine, folder: Path, name: str) -> None:
        self.engine, self.first, self.folder = engine, folder / FIRST, folder / name
        self.checkpointer = Checkpointer(self.folder, commit.Retention(1), True, lambda: None)
        self.checkpointer.reserve(engine)
        self.sources = [t for part in engine.fragments() for t in part.states.values()]
        self.copies = [torch.empty_like(source).copy_(source) for source in self.sources]

    def round(self, step: int) -> Round:
        copy = seconds(self._copy)
        blocked = self.checkpointer.save(self.engine, state_of(step))
        self.checkpointer.wait()
        own = commit.step_directory(self.folder, step)
        [first] = commit.committed(self.first)
        return Round(
            copy,
            blocked,
            self.checkpointer.durable_seconds or 0.0,
            seconds(lambda: read_plainly(own), own),
            seconds(lambda: self._load(own), own),
            seconds(lambda: self._load(first), first),
            seconds(self._resume, own),
        )

    def _copy(self) -> None:
        for source, copy in zip(self.sources, self.copies, strict=True):
            copy.copy_(source)

    def _load(self, directory: Path) -> None:
        self.checkpointer.load(self.engine, directory, state_of(1))

    def _resume(self) -> None:
        found = self.checkpointer.newest()
        assert found is not None
        self.checkpointer.load(self.engine, *found)


def measure(arguments: argparse.Namespace, info: ProcessInfo) -> None:
    """One rank of the layout that is asked for; rank 0 prints the medians as JSON."""
    [name], device = arguments.layouts, device_of(info)
    initialize_processes(info, LAYOUTS[name], device, timedelta(minutes=10))
    engine = build(arguments.layers, LAYOUTS[name], device)
    measurement = Measurement(engine, arguments.folder, name)
    rounds = [vars(measurement.round(step)) for step in range(1, arguments.rounds + 1)]
    if info.rank == 0:
        print(json.dumps({key: statistics.median(r[key] for r in rounds) for key in rounds[0]}))
    shutdown_processes()


def start(arguments: argparse.Namespace, name: str, folder: Path) -> Round:
    """The ranks of one layout, and what they measured."""
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node"]
    script = [str(LAYOUTS[name].world_size), __file__, "--layouts", name, "--folder", str(folder)]
    script += ["--layers", str(arguments.layers), "--rounds", str(arguments.rounds)]
    printed = subprocess.run([*launcher, *script], check=True, stdout=subprocess.PIPE, text=True)
    return Round(**json.loads(printed.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--folder", type=Path, help="on the disk in question")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments, process_info())
        return
    folder = Path(tempfile.mkdtemp(prefix="esolm-checkpoints-", dir=arguments.folder))
    print(
        COLUMNS.format(
            "layout",
            "GB",
            "blocked s",
            "blocked / copy",
            "durable s",
            "plain GB/s",
            "load",
            f"of {FIRST}'s",
            "resume",
        )
    )
    try:
        for name in dict.fromkeys([FIRST, *arguments.layouts]):
            report(name, start(arguments, name, folder), folder / name)
    finally:
        shutil.rmtree(folder)


COLUMNS = "| {:9} | {:>6} | {:>9} | {:>14} | {:>9} | {:>12} | {:>6} | {:>13} | {:>6} |"


def report(name: str, found: Round, folder: Path) -> None:
    """A line of the table; readings as shares of the plain one's speed."""
    size = sum(path.stat().st_size for path in commit.committed(folder)[-1].iterdir()) / 1e9
    readings = (found.load, found.load_of_first, found.resume)
    columns = (
        name,
        f"{size:.2f}",
        f"{found.blocked:.2f}",
        f"{found.blocked / found.copy:.2f}",
        f"{found.durable:.1f}",
        f"{size / found.plain:.1f}",
        *(f"{found.plain / reading:.2f}" for reading in readings),
    )
    print(COLUMNS.format(*columns), flush=True)


if __name__ == "__main__":
    main()
