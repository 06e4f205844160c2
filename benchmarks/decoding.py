"""What decoding takes: beside the bare linears of its passes, in other dtypes, in other systems.

Random weights: the time does not depend on them. Each row is measured in turns with what it is
compared to, in CPU seconds of the process and in seconds; medians. On a GPU the seconds count,
until it has finished, and decoding without CUDA graphs stands beside it.

    python benchmarks/decoding.py                     # the paper's size: 12 x 768, L = 1,024
    python benchmarks/decoding.py --dtypes bf16 int8
    python benchmarks/decoding.py --systems --lengths 1024 --repeats 1
    python benchmarks/decoding.py --device cuda --dtypes bf16 --batches 1 16 64
    python benchmarks/decoding.py --hidden-size 256 --layers 6 --vocab-size 4096 --lengths 256
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM


def random_network(
    hidden_size: int, num_layers: int, vocab_size: int, device: str = "cpu", **objective: Any
) -> Any:
    """A network of the demo's architecture with random weights."""
    torch.manual_seed(0)
    config = EsoLMConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        mask_token_id=vocab_size - 1,
        bos_token_id=0,
        **objective,
    )
    return EsoLMForMaskedLM(config).eval().to(device)


def on_a_gpu() -> bool:
    """Whether this process has a network there."""
    return torch.cuda.memory_allocated() > 0


@dataclass(frozen=True)
class Cost:
    """Medians of CPU seconds and of seconds. used: those that count."""

    cpu: float
    wall: float

    @property
    def used(self) -> float:
        return self.wall if on_a_gpu() else self.cpu

    def __str__(self) -> str:
        return f"{self.cpu:.2f} ({self.wall:.2f})"


def in_turns(repeats: int, *runs: Callable[[], object]) -> list[Cost]:
    """Each once without a clock, then all in turns."""
    found: list[list[tuple[float, float]]] = [[] for _ in runs]
    for number in range(repeats + 1):
        for run, costs in zip(runs, found, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if on_a_gpu():
                torch.cuda.synchronize()
            if number:
                costs.append((time.process_time() - cpu, time.perf_counter() - wall))
    return [
        Cost(*(statistics.median(each) for each in zip(*costs, strict=True))) for costs in found
    ]


def bare_linears(network: Any, run: Callable[[], object]) -> Callable[[], None]:
    """The products of matrices that a run makes, by torch as it comes, and nothing else."""
    calls: list[tuple[nn.Linear, int]] = []
    modules = [each for each in network.modules() if isinstance(each, nn.Linear)]
    hooks = [
        each.register_forward_hook(lambda module, args, _: calls.append((module, len(args[0]))))
        for each in modules
    ]
    run()
    for hook in hooks:
        hook.remove()
    inputs = {
        each.in_features: torch.randn(4096, each.in_features).to(each.weight) for each in modules
    }

    @torch.inference_mode()
    def replay() -> None:
        for module, rows in calls:
            F.linear(inputs[module.in_features][:rows], module.weight, module.bias)

    return replay


def in_dtypes(network: Any, dtypes: list[str]) -> dict[str, Any]:
    """The fp32 network, and the same weights in others."""
    made = {"fp32": network}
    if "bf16" in dtypes:
        made["bf16"] = copy.deepcopy(network).bfloat16()
    if "int8" in dtypes:
        made["int8"] = network.in_int8()
    return made


def row(networks: dict[str, Any], repeats: int, uncached: bool, **options: Any) -> str:
    """One line of the table of dtypes."""

    def writes(network: Any, **others: bool) -> Callable[[], Any]:
        options_here = {"seed": 0, "return_dict_in_generate": True, **others}
        return partial(network.generate, **options_here, **options)

    fp32 = writes(networks["fp32"])
    nfe = fp32().nfe
    # A graph that is replayed calls no layer, so they could not be counted.
    seen = writes(networks["fp32"], cuda_graphs=False)
    runs = [bare_linears(networks["fp32"], seen), *map(writes, networks.values())]
    if on_a_gpu():
        runs.append(seen)
    if uncached:
        runs.append(writes(networks["fp32"], use_cache=False))
    bare, plain, *others = in_turns(repeats, *runs)
    shown = [str(nfe), str(bare), f"{plain} | {plain.used / bare.used:.2f}"]
    shown += [f"{cost} | {cost.used / plain.used:.2f}" for cost in others]
    return " | ".join(shown)


def table_of_dtypes(args: argparse.Namespace) -> None:
    """Decoding beside the bare linears of its passes, in fp32 and in others."""
    network = random_network(args.hidden_size, args.layers, args.vocab_size, args.device)
    networks = in_dtypes(network, args.dtypes)
    columns = ["length", "alpha_0", "steps", "batch", "top_p", "guesses", "NFE", "bare linears"]
    columns += ["fp32", "of bare linears"]
    columns += [name for each in list(networks)[1:] for name in (each, "of fp32")]
    columns += ["no graphs", "of fp32"] * on_a_gpu()
    columns += ["uncached", "of fp32"] * args.uncached
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    settings = product(
        args.lengths, args.alphas, args.steps, args.batches, args.top_ps, args.guesses
    )
    for length, alpha_0, num_steps, batch, top_p, guesses in settings:
        line = row(
            networks, args.repeats, args.uncached,
            length=length, alpha_0=alpha_0, num_steps=num_steps, num_samples=batch, top_p=top_p,
            guesses=guesses,
        )  # fmt: skip
        print(
            f"| {length} | {alpha_0} | {num_steps} | {batch} | {top_p} | {guesses} | {line} |",
            flush=True,
        )


# Every system's decoder: what it was trained as, and how it writes.
SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Eso-LM (B), alpha_0 1": ({}, {"alpha_0": 1.0}),
    "Eso-LM (B), alpha_0 0": ({}, {"alpha_0": 0.0}),
    "AR": ({"objective": "ar"}, {}),
    "BD3-LM, blocks of 16": ({"objective": "bd3lm", "block_size": 16}, {}),
    "BD3-LM, blocks of 4": ({"objective": "bd3lm", "block_size": 4}, {}),
    "MDLM": ({"objective": "mdlm"}, {}),
}


def count_passes(network: Any, passes: list[int], **options: Any) -> None:
    """Writes a text, and notes in how many passes."""
    passes.append(network.generate(seed=0, return_dict_in_generate=True, **options).nfe)


def table_of_systems(args: argparse.Namespace) -> None:
    """One network's size, each system's own decoder, side by side."""
    networks = {
        name: random_network(
            args.hidden_size, args.layers, args.vocab_size, args.device, **objective
        )
        for name, (objective, _) in SYSTEMS.items()
        if name in args.systems
    }
    print("| length | steps | system | NFE | cost | of the first |\n|" + "---|" * 6)
    for length, steps in product(args.lengths, args.steps):
        passes: dict[str, list[int]] = {name: [] for name in networks}
        options = {"length": length, "num_steps": steps}
        costs = in_turns(args.repeats, *(
            partial(count_passes, network, passes[name], **options, **SYSTEMS[name][1])
            for name, network in networks.items()
        ))  # fmt: skip
        for name, cost in zip(networks, costs, strict=True):
            ratio = cost.used / costs[0].used
            print(f"| {length} | {steps} | {name} | {passes[name][0]} | {cost} | {ratio:.2f} |")


def main() -> None:
    """Prints one row per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024])
    parser.add_argument("--steps", type=int, nargs="+", default=[64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--top-ps", type=float, nargs="+", default=[1.0, 0.9])
    parser.add_argument("--guesses", type=int, nargs="+", default=[0])
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=50_258)
    parser.add_argument("--dtypes", nargs="*", choices=["fp32", "bf16", "int8"], default=[],
                        help="others than fp32, too")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--uncached", action="store_true", help="time exact recomputation, too")
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS),
                        help="these systems' decoders side by side; none named: all")  # fmt: skip
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; CPU seconds (seconds)")
    if args.systems is None:
        table_of_dtypes(args)
    else:
        args.systems = args.systems or list(SYSTEMS)
        table_of_systems(args)


if __name__ == "__main__":
    main()
