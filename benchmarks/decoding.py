"""Cached against uncached decoding: a table by length, steps and batch.

Both decode the same plan with the same noise; uncached decoding recomputes in every pass all
tokens written so far. Random weights: the time does not depend on them.

    python benchmarks/decoding.py --lengths 256 1024 --steps 16 64 --batches 1 8
"""

import argparse
import statistics
import time
from itertools import product
from typing import Any

import torch

from esolm.pipeline.export.bundle.configuration_esolm import EsoLMConfig
from esolm.pipeline.export.bundle.modeling_esolm import EsoLMForMaskedLM


def random_network(hidden_size: int, num_layers: int, vocab_size: int) -> Any:
    """A network of the demo's architecture with random weights."""
    torch.manual_seed(0)
    config = EsoLMConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        mask_token_id=vocab_size - 1,
    )
    return EsoLMForMaskedLM(config).eval()


def measure(network: Any, repeats: int, **options: Any) -> tuple[int, float, float, int]:
    """(nfe, median cached seconds, median uncached seconds, tokens that differ), in turns."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _, use_cache in product(range(repeats), (True, False)):
        started = time.perf_counter()
        output = network.generate(
            use_cache=use_cache, seed=0, return_dict_in_generate=True, **options
        )
        seconds[use_cache].append(time.perf_counter() - started)
        if use_cache:
            cached = output
    differing = int((cached.sequences != output.sequences).sum())
    fast, slow = statistics.median(seconds[True]), statistics.median(seconds[False])
    return cached.nfe, fast, slow, differing


def main() -> None:
    """Prints one row per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--alphas", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    network = random_network(args.hidden_size, args.layers, args.vocab_size)
    network.generate(length=16, num_steps=4)
    print("| length | alpha_0 | steps | batch | NFE | cached s | uncached s | ratio | differing |")
    print("|---|---|---|---|---|---|---|---|---|")
    settings = product(args.lengths, args.alphas, args.steps, args.batches)
    for length, alpha_0, num_steps, batch in settings:
        nfe, cached, uncached, differing = measure(
            network, args.repeats,
            length=length, alpha_0=alpha_0, num_steps=num_steps, num_samples=batch,
        )  # fmt: skip
        print(
            f"| {length} | {alpha_0} | {num_steps} | {batch} | {nfe} | {cached:.3f} "
            f"| {uncached:.3f} | {uncached / cached:.1f} | {differing} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
