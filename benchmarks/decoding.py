"""What decoding takes, beside the bare linears of the same passes and beside other decoders.

Random weights: the time does not depend on them. Each row is measured in turns with what it is
compared to, in CPU seconds of the process and in seconds; medians.

    python benchmarks/decoding.py                     # the paper's size: 12 x 768, L = 1,024
    python benchmarks/decoding.py --hidden-size 256 --layers 6 --vocab-size 4096 --lengths 256
"""

import argparse
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


def random_network(hidden_size: int, num_layers: int, vocab_size: int, **objective: Any) -> Any:
    """A network of the demo's architecture with random weights."""
    torch.manual_seed(0)
    config = EsoLMConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        mask_token_id=vocab_size - 1,
        **objective,
    )
    return EsoLMForMaskedLM(config).eval()


@dataclass(frozen=True)
class Cost:
    """Medians of CPU seconds and of seconds."""

    cpu: float
    wall: float

    def __str__(self) -> str:
        return f"{self.cpu:.2f} ({self.wall:.2f})"


def in_turns(repeats: int, *runs: Callable[[], object]) -> list[Cost]:
    """Each once without a clock, then all in turns."""
    found: list[list[tuple[float, float]]] = [[] for _ in runs]
    for number in range(repeats + 1):
        for run, costs in zip(runs, found, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if number:
                costs.append((time.process_time() - cpu, time.perf_counter() - wall))
    return [
        Cost(*(statistics.median(each) for each in zip(*costs, strict=True))) for costs in found
    ]


def bare_linears(network: Any, run: Callable[[], object]) -> Callable[[], None]:
    """The products of matrices that a run makes, and nothing else."""
    calls: list[tuple[nn.Linear, int]] = []
    modules = [each for each in network.modules() if isinstance(each, nn.Linear)]
    hooks = [
        each.register_forward_hook(lambda module, args, _: calls.append((module, len(args[0]))))
        for each in modules
    ]
    run()
    for hook in hooks:
        hook.remove()
    inputs = {each.in_features: torch.randn(4096, each.in_features) for each in modules}

    @torch.inference_mode()
    def replay() -> None:
        for module, rows in calls:
            given = inputs[module.in_features][:rows].to(module.weight.dtype)
            F.linear(given, module.weight, module.bias)

    return replay


def row(network: Any, repeats: int, uncached: bool, **options: Any) -> str:
    """One line of the table."""

    def run(use_cache: bool = True) -> Any:
        return network.generate(
            seed=0, return_dict_in_generate=True, use_cache=use_cache, **options
        )

    nfe = run().nfe
    runs: list[Callable[[], object]] = [run, bare_linears(network, run)]
    if uncached:
        runs.append(partial(run, use_cache=False))
    costs = in_turns(repeats, *runs)
    shown = "-"
    if uncached:
        shown = f"{costs[2]} | {costs[2].cpu / costs[0].cpu:.1f}"
    return f"{nfe} | {costs[0]} | {costs[1]} | {costs[0].cpu / costs[1].cpu:.2f} | {shown} |"


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
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--uncached", action="store_true", help="time exact recomputation, too")
    args = parser.parse_args()
    network = random_network(args.hidden_size, args.layers, args.vocab_size)
    network = network.to({"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype])
    print(f"{torch.get_num_threads()} threads; CPU seconds (seconds)")
    print("| length | alpha_0 | steps | batch | top_p | guesses | NFE | decoding | bare linears "
          "| ratio | uncached | ratio |")  # fmt: skip
    print("|---|" + "---|" * 11)
    settings = product(
        args.lengths, args.alphas, args.steps, args.batches, args.top_ps, args.guesses
    )
    for length, alpha_0, num_steps, batch, top_p, guesses in settings:
        line = row(
            network, args.repeats, args.uncached,
            length=length, alpha_0=alpha_0, num_steps=num_steps, num_samples=batch, top_p=top_p,
            guesses=guesses,
        )  # fmt: skip
        print(
            f"| {length} | {alpha_0} | {num_steps} | {batch} | {top_p} | {guesses} | {line}",
            flush=True,
        )


if __name__ == "__main__":
    main()
