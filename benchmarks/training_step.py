"""A training step through the engine against a plain PyTorch loop over the same network and batch.

`--against bare` is a loop by hand in one process, `--against fsdp2` PyTorch's own sharding over all
ranks. Both loops take turns in one run; the median of the paired ratios is what counts. On GPUs the
model FLOPs utilisation of both is printed too. With `--compile` the engine and the bare loop
compile their pieces, and FSDP2 its blocks, apart from masks and keys of dropout.

    python benchmarks/training_step.py --size 512x6
    torchrun --nproc-per-node 8 benchmarks/training_step.py --size 170m --against fsdp2 \\
        --precision bf16 --micro-batch 16
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from esolm.model import network as networks
from esolm.model.attention import MaskBuilder
from esolm.model.config import ModelConfig
from esolm.model.flops import flops_per_token, layer_costs
from esolm.model.initialize import initialize
from esolm.model.kernels import kernels_in_use, use_kernels
from esolm.model.network import Network
from esolm.model.objectives import EsoLM
from esolm.pipeline.data.batches import BatchSource
from esolm.pipeline.data.micro_batch import MicroBatch
from esolm.pipeline.parallel.bootstrap import (
    ProcessInfo,
    device_of,
    initialize_processes,
    process_info,
    shutdown_processes,
)
from esolm.pipeline.parallel.build import build_engine
from esolm.pipeline.parallel.engine import EngineConfig
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.parallel.module import LossModule, parallel_config
from esolm.pipeline.run.hardware import peak_flops
from esolm.pipeline.train.guards import SpikeGuard

CLIP, EMA_DECAY, SEED = 1.0, 0.999, 1
OPTIMIZER: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


@dataclass(frozen=True)
class Size:
    """A network and the rows that one step feeds it on each rank."""

    hidden: int
    layers: int
    heads: int
    vocab: int
    seq_len: int
    rows: int
    micro_batch: int

    def model(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=self.vocab,
            mask_id=self.vocab - 1,
            hidden_size=self.hidden,
            num_layers=self.layers,
            num_heads=self.heads,
            ffn_hidden_size=4 * self.hidden,
            dropout=0.1,
        )

    def objective(self) -> EsoLM:
        return EsoLM(self.vocab - 1, alpha_0=0.5, kappa=0.5)


SIZES = {
    "tiny": Size(64, 2, 4, 512, 64, 8, 4),
    "512x6": Size(512, 6, 8, 50258, 512, 4, 2),
    "512x8": Size(512, 8, 8, 4096, 256, 16, 4),
    "170m": Size(768, 12, 12, 50258, 1024, 64, 16),
    "1.3b": Size(2048, 24, 16, 50258, 1024, 32, 8),
    "7b": Size(4096, 32, 32, 50258, 1024, 16, 2),
}


class RandomTokens:
    """Token rows of random ids, in place of a dataset."""

    quarantine = None

    def __init__(self, size: Size) -> None:
        self._size = size

    def read(self, indices: Sequence[int]) -> NDArray[np.int64]:
        shape = (len(indices), self._size.seq_len)
        return np.random.default_rng(indices[0]).integers(0, self._size.vocab - 1, shape)


Step = Callable[[], float]
"""Takes one training step; returns the loss of the global batch."""


def engine_loop(config: EngineConfig, batches: list[MicroBatch]) -> Step:
    """The step as the trainer takes it, guard included."""
    engine = build_engine(config)
    guard = SpikeGuard(128, 6.0)

    def step() -> float:
        return engine.train_step(batches, OPTIMIZER["lr"], guard.judge).loss

    return step


def bare_loop(config: EngineConfig, batches: list[MicroBatch]) -> Step:
    """Forward, backward, clip, torch's fused AdamW and an EMA, by hand, in fp32."""
    if config.precision != "fp32" or config.layout.world_size > 1:
        raise SystemExit("--against bare compares fp32 in one process; take --against fsdp2")
    return _plain_loop(_network(config), config, batches)


def fsdp2_loop(config: EngineConfig, batches: list[MicroBatch]) -> Step:
    """The same over torch's fully_shard: every block and the rest, fp32 gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    module = _network(config)
    mesh = init_device_mesh(config.device.type, (config.layout.world_size,))
    policy = MixedPrecisionPolicy()
    if config.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    compile_blocks(module.network, kernels_in_use().compiled)
    for block in module.network.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    return _plain_loop(module, config, batches)


def compile_blocks(network: Network, backend: str) -> None:
    """Has each block compiled, as torchtitan does, apart from its mask and its keys of dropout.

    The engine beside it makes both outside of its pieces in any case.
    """
    if not backend:
        return
    outside: Any = torch.compiler.disable
    MaskBuilder.__call__ = outside(MaskBuilder.__call__)  # type: ignore[method-assign]
    for name in ("token_keys", "feature_salts"):  # inductor's C++ of a block would overflow in them
        setattr(networks, name, outside(getattr(networks, name)))
    for block in network.blocks:
        block.compile(backend=backend)


def _network(config: EngineConfig) -> LossModule:
    network = Network(config.model, parallel_config(Layout(1, 1, 1, 1)))
    initialize(network.named_parameters(), config.model, SEED, 0, 1)
    return LossModule(network).to(config.device).train()


def _plain_loop(module: nn.Module, config: EngineConfig, batches: list[MicroBatch]) -> Step:
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, fused=True, **OPTIMIZER)
    local = [_local(parameter) for parameter in parameters]
    averages = [tensor.clone() for tensor in local]

    def on_device(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(config.device, non_blocking=True) for tensor in tensors)

    def step() -> float:
        total = torch.zeros((), device=config.device)
        for batch in batches:
            loss = module(on_device(batch.inputs), on_device(batch.targets))
            # fully_shard takes the mean over ranks of what the objective wants summed.
            (loss * config.layout.dp).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(averages, local, 1.0 - EMA_DECAY)
        dist.all_reduce(total)
        return total.item()

    return step


def _local(parameter: nn.Parameter) -> Tensor:
    """The part of a parameter that this rank holds, sharing its memory."""
    held: Any = parameter.detach()
    local: Tensor = held.to_local() if hasattr(held, "to_local") else held
    return local


def prepare(args: argparse.Namespace, info: ProcessInfo) -> tuple[EngineConfig, list[MicroBatch]]:
    """The engine's configuration, data-parallel over all ranks, and this rank's batch."""
    size: Size = SIZES[args.size]
    model, micro_batch = size.model(), args.micro_batch or size.micro_batch
    objective = size.objective()
    source = BatchSource(
        RandomTokens(size),  # type: ignore[arg-type]
        objective,
        SEED,
        size.rows * info.world_size,
        micro_batch,
        info.rank,
        info.world_size,
    )
    batches = source.batch(0)
    config = EngineConfig(
        model=model,
        layout=Layout(1, 1, info.world_size, args.zero),
        device=device_of(info),
        seed=SEED,
        micro_batch_size=micro_batch,
        num_micro_batches=len(batches),
        precision=args.precision,
        gradient_clipping=CLIP,
        optimizer={**OPTIMIZER, "ema_decay": EMA_DECAY},
        layer_costs=layer_costs(model, objective.work(size.seq_len)),
    )
    return config, batches


def measure(loops: dict[str, Step], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each loop, in turns, after one round that does not count.

    They are wall-clock time on a GPU and CPU time elsewhere.

    Raises AssertionError if the loops do not compute the same losses.
    """
    # Others may use the same CPUs.
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    losses: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name in sorted(loops, reverse=bool(turn % 2)):
            dist.barrier()
            started = clock()
            losses[name].append(loops[name]())
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 1:
                seconds[name].append(clock() - started)
    one, other = losses.values()
    assert np.allclose(one, other, rtol=1e-2), f"the loops are not the same: {losses}"
    return seconds


def report(args: argparse.Namespace, config: EngineConfig, seconds: dict[str, list[float]]) -> None:
    size: Size = SIZES[args.size]
    flops = flops_per_token(config.model, size.objective().work(size.seq_len), size.seq_len)
    peak = peak_flops(config.device)
    where = torch.cuda.get_device_name() if config.device.type == "cuda" else "CPU"
    print(f"{args.size}, {args.precision}, {config.layout}, {where}, {args.rounds} rounds")
    for name, found in seconds.items():
        step = statistics.median(found)
        speed = size.rows * size.seq_len / step  # of one rank
        mfu = f", MFU {flops * speed / peak:.3f}" if peak else ""
        print(f"{name}: {step:.3f} s per step, {speed:,.0f} tokens/s per rank{mfu}")
    ratios = [e / p for e, p in zip(seconds["engine"], seconds[args.against], strict=True)]
    print(f"engine / {args.against}: {statistics.median(ratios):.3f} of the seconds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="512x8")
    parser.add_argument("--against", choices=("bare", "fsdp2"), default="bare")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--micro-batch", type=int, help="rows; the default is the size's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compile", default="", metavar="BACKEND", help="of torch.compile, for both"
    )
    args = parser.parse_args()
    use_kernels(replace(kernels_in_use(), compiled=args.compile))
    info = process_info()
    layout, device = Layout(1, 1, info.world_size, args.zero), device_of(info)
    initialize_processes(info, layout, device, timedelta(minutes=10))
    config, batches = prepare(args, info)
    plain = {"bare": bare_loop, "fsdp2": fsdp2_loop}[args.against]
    loops = {"engine": engine_loop(config, batches), args.against: plain(config, batches)}
    seconds = measure(loops, config.device, args.rounds)
    if info.rank == 0:
        report(args, config, seconds)
    shutdown_processes()


if __name__ == "__main__":
    main()
