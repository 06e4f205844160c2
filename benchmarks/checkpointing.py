"""What a checkpoint costs: seconds that training is blocked, seconds to durable, and reading it.

A 170 M parameter network (12 x 768, vocabulary 50,258) with fp32 weights, both moments and EMA.
Compared in the same run: an asynchronous save's blocked time with copying the same bytes in memory,
and loading with reading the same files one after the other. `python benchmarks/checkpointing.py`
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch

from model.config import ModelConfig
from model.flops import layer_costs
from model.objectives import EsoLM
from pipeline.checkpoint import commit
from pipeline.checkpoint.checkpointer import Checkpointer, RunState
from pipeline.parallel import zero
from pipeline.parallel.bootstrap import (
    device_of,
    initialize_processes,
    process_info,
    shutdown_processes,
)
from pipeline.parallel.engine import Engine, EngineConfig
from pipeline.parallel.layout import Layout

LAYOUT = Layout(1, 1, 1, 1)


def build(layers: int, device: torch.device) -> Engine:
    from pipeline.parallel.build import build_engine

    model = ModelConfig(vocab_size=50258, mask_id=50257, num_layers=layers)
    return build_engine(
        EngineConfig(
            model=model,
            layout=LAYOUT,
            device=device,
            seed=1,
            micro_batch_size=1,
            num_micro_batches=1,
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


def copy_seconds(engine: Engine, buffers: dict[int, torch.Tensor]) -> float:
    """Seconds to copy every state once, into memory that is there already."""
    sources = [t for part in zero.fragments(engine) for t in part.states.values()]
    for number, source in enumerate(sources):
        buffers.setdefault(number, torch.empty_like(source).copy_(source))
    started = time.perf_counter()
    for number, source in enumerate(sources):
        buffers[number].copy_(source)
    return time.perf_counter() - started


def drop_cache(directory: Path) -> None:
    """Has the system forget the files' pages, so that the next read is from the disk."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def read_seconds(directory: Path) -> float:
    """Seconds to read all files of a checkpoint in 8 MiB pieces."""
    drop_cache(directory)
    started = time.perf_counter()
    for path in sorted(directory.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass
    return time.perf_counter() - started


def load_seconds(checkpointer: Checkpointer, engine: Engine, directory: Path) -> float:
    drop_cache(directory)
    started = time.perf_counter()
    checkpointer.load(engine, directory, state_of(1))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device = device_of(process_info())
    initialize_processes(process_info(), LAYOUT, device, timedelta(minutes=10))
    engine = build(arguments.layers, device)
    folder = Path(tempfile.mkdtemp(prefix="esolm-checkpoints-"))
    try:
        measure(engine, folder, arguments.rounds)
    finally:
        shutil.rmtree(folder)
        shutdown_processes()


def measure(engine: Engine, folder: Path, rounds: int) -> None:
    checkpointer = Checkpointer(folder, commit.Retention(1), asynchronous=True, moved=lambda: None)
    started = time.perf_counter()
    checkpointer.reserve(engine)
    print(f"host memory for the copies taken in {time.perf_counter() - started:.2f} s")
    buffers: dict[int, torch.Tensor] = {}
    blocked, copied, durable, plain, loaded = [], [], [], [], []
    for step in range(1, rounds + 1):
        copied.append(copy_seconds(engine, buffers))
        blocked.append(checkpointer.save(engine, state_of(step)))
        checkpointer.wait()
        durable.append(checkpointer.durable_seconds or 0.0)
        directory = commit.step_directory(folder, step)
        plain.append(read_seconds(directory))
        loaded.append(load_seconds(checkpointer, engine, directory))
    size = sum(path.stat().st_size for path in directory.iterdir())
    copy, block = statistics.median(copied), statistics.median(blocked)
    print(f"checkpoint: {size / 1e9:.2f} GB")
    print(
        f"copy in memory {copy:.3f} s; asynchronous save blocks {block:.3f} s: {block / copy:.2f}x"
    )
    print(f"durable after {statistics.median(durable):.2f} s")
    read, load = statistics.median(plain), statistics.median(loaded)
    print(f"plain read {read:.2f} s, load {load:.2f} s: {read / load:.2f}x the plain speed")


if __name__ == "__main__":
    main()
