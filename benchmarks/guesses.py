"""What speculation saves on a trained bundle: passes per token, CPU seconds, how many guesses hold.

Plain decoding and each number of guesses in turns, over the same seeds; only passes of the
sequential phase are counted. Medians of the seconds.

    python benchmarks/guesses.py runs/demo/bundle --prompt "def "
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from esolm.pipeline.export.bundle.decoding_esolm import Batch
from esolm.pipeline.export.bundle.requests_esolm import TextRequest
from esolm.pipeline.generate import load_bundle


def write(model: Any, request: TextRequest) -> tuple[Any, float]:
    """The finished text, and the CPU seconds it took."""
    started = time.process_time()
    batch = Batch(model, 1, request.length + 1 + request.guesses)
    writing = batch.add(request)
    while batch.step():
        pass
    return writing, time.process_time() - started


def main() -> None:
    """Prints one row per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("runs/demo/bundle"))
    parser.add_argument("--prompt", default="")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.7])
    parser.add_argument("--guesses", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    if not args.bundle.exists():
        print(f"{args.bundle} is not there: `make demo` makes one")
        return
    bundle = load_bundle(args.bundle)
    prompt = list(bundle.tokenizer.encode(args.prompt)) if bundle.tokenizer else []
    tokens = prompt + [bundle.model.config.mask_token_id] * (args.length - len(prompt))
    print(f"{torch.get_num_threads()} threads")
    print("| alpha_0 | temperature | guesses | passes per token | guesses that held | seconds |")
    print("|---|---|---|---|---|---|")
    for alpha_0 in args.alphas:
        for temperature in args.temperatures:
            found: dict[int, list[tuple[Any, float]]] = {count: [] for count in args.guesses}
            for seed in range(args.seeds):
                for count in args.guesses:
                    request = TextRequest(
                        tokens, alpha_0, args.steps, temperature=temperature, seed=seed,
                        guesses=count,
                    )  # fmt: skip
                    found[count].append(write(bundle.model, request))
            plain = statistics.median(seconds for _, seconds in found[args.guesses[0]])
            for count, results in found.items():
                print(row(alpha_0, temperature, count, results, plain), flush=True)


def row(
    alpha_0: float, temperature: float, count: int, results: list[tuple[Any, float]], plain: float
) -> str:
    """One line of the table."""
    passes = tokens = checked = held = 0
    for writing, _ in results:
        sequential = writing.history[writing.walk.plan.num_diffusion :]
        passes += len(sequential)
        tokens += sum(map(len, sequential))
        if writing.guesses is not None:
            checked += writing.guesses.checked
            held += writing.guesses.held
    seconds = statistics.median(seconds for _, seconds in results)
    share = f"{held / checked:.0%}" if checked else "-"
    per_token = f"{passes / tokens:.2f}" if tokens else "-"
    return (
        f"| {alpha_0} | {temperature} | {count} | {per_token} | {share} "
        f"| {seconds:.2f} ({seconds / plain:.2f}) |"
    )


if __name__ == "__main__":
    main()
