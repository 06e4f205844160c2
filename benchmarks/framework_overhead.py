"""A training step through the engine against a bare PyTorch loop over the same network and batch.

The network is the issue's: hidden 512 x 8 layers. Both are timed in turns in one process, and the
median of the paired ratios is printed. `python benchmarks/framework_overhead.py`
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch

from model.config import ModelConfig
from model.flops import layer_costs
from model.initialize import initialize
from model.loss import weighted_loss
from model.network import Network
from model.objectives import EsoLM
from pipeline.parallel.bootstrap import (
    device_of,
    initialize_processes,
    process_info,
    shutdown_processes,
)
from pipeline.parallel.engine import EngineConfig, MicroBatch, parallel_config
from pipeline.parallel.layout import Layout
from pipeline.train.batches import BatchSource
from pipeline.train.guards import SpikeGuard

LAYOUT = Layout(1, 1, 1, 1)
GLOBAL_BATCH, MICRO_BATCH, SEQ_LEN, CLIP = 16, 4, 256, 1.0
OPTIMIZER = {
    "lr": 1e-4,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "ema_decay": 0.999,
}
MODEL = ModelConfig(
    vocab_size=4096, mask_id=3, hidden_size=512, num_layers=8, num_heads=8, ffn_hidden_size=2048
)


class RandomTokens:
    """Token rows of random ids, in place of a dataset."""

    def read(self, indices: Sequence[int]) -> object:
        import numpy as np

        return np.random.default_rng(0).integers(4, 4096, (len(indices), SEQ_LEN))


def bare_loop(device: torch.device, batches: list[MicroBatch]) -> Callable[[], None]:
    """Forward, backward, clip, torch's fused AdamW and an EMA, by hand."""
    network = Network(MODEL, parallel_config(LAYOUT))
    initialize(network.named_parameters(), MODEL, 1, 0, 1)
    network.to(device).train()
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    average = [parameter.detach().clone() for parameter in parameters]

    def step() -> None:
        total = 0.0
        for batch in batches:
            inputs = tuple(tensor.to(device) for tensor in batch.inputs)
            targets = tuple(tensor.to(device) for tensor in batch.targets)
            loss = weighted_loss(network.head, network(inputs), targets)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 0.001)

    return step


def engine_loop(device: torch.device, batches: list[MicroBatch]) -> Callable[[], None]:
    """The step as the trainer takes it, guard included."""
    from pipeline.parallel.build import build_engine

    objective = EsoLM(MODEL.mask_id, 0.5, 0.5)
    engine = build_engine(
        EngineConfig(
            model=MODEL,
            layout=LAYOUT,
            device=device,
            seed=1,
            micro_batch_size=MICRO_BATCH,
            num_micro_batches=len(batches),
            precision="fp32",
            gradient_clipping=CLIP,
            optimizer=OPTIMIZER,
            layer_costs=layer_costs(MODEL, objective.work(SEQ_LEN)),
        )
    )
    guard = SpikeGuard(128, 6.0)
    return lambda: engine.train_step(batches, 1e-4, guard.judge) and None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    device = device_of(process_info())
    initialize_processes(process_info(), LAYOUT, device, timedelta(minutes=10))
    source = BatchSource(
        RandomTokens(), EsoLM(MODEL.mask_id, 0.5, 0.5), 1, GLOBAL_BATCH, MICRO_BATCH, 0, 1
    )  # type: ignore[arg-type]
    batches = source.batch(0)
    loops = {"bare": bare_loop(device, batches), "engine": engine_loop(device, batches)}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name in sorted(loops, reverse=bool(turn % 2)):
            started = time.perf_counter()
            loops[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 1:
                seconds[name].append(time.perf_counter() - started)
    ratios = [e / b for e, b in zip(seconds["engine"], seconds["bare"], strict=True)]
    bare, engine = (statistics.median(seconds[name]) for name in ("bare", "engine"))
    print(f"bare loop {bare:.3f} s, engine {engine:.3f} s per step (medians of {rounds})")
    print(f"engine / bare: {statistics.median(ratios):.3f}")
    shutdown_processes()


if __name__ == "__main__":
    main()
