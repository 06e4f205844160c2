"""What sharing passes gains: requests to `esolm serve` one after another and all at once.

Both in turns against one server, which this script starts; medians of seconds. Beside each ratio
stands that of the passes' bare matrix products, in fp32: sharing cannot gain more in them.

    python -m benchmarks.serving runs/demo/bundle --clients 16 --tokens 128
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from benchmarks.decoding import bare_linears, in_turns

STEPS = 16
"""Of the diffusion phase of a text."""


def ask(address: str, tokens: int, alpha_0: float, seed: int) -> int:
    """One completion; returns the tokens written."""
    body = {"prompt": "def ", "max_tokens": tokens, "seed": seed, "alpha_0": alpha_0,
            "steps": STEPS, "ignore_eos": True}  # fmt: skip
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=600) as answer:
        written: int = json.load(answer)["usage"]["completion_tokens"]
    return written


def start(bundle: Path, rows: int) -> tuple[subprocess.Popen[bytes], str]:
    """A server and its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "esolm", "serve", str(bundle)]
    options = ["--port", str(port), "--rows", str(rows), "--queue", str(rows)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/ready", timeout=5).close()
            return process, address
        except urllib.error.URLError:
            if process.poll() is not None:
                sys.exit(f"the server ended with exit code {process.returncode}")
            time.sleep(0.1)


def bare_gain(network: Any, alpha_0: float, args: argparse.Namespace) -> float:
    """How many times faster the products of all texts are in shared passes than in their own."""

    def products(texts: int) -> Callable[[], None]:
        writes = partial(
            network.generate, seed=0, length=args.tokens, alpha_0=alpha_0, num_steps=STEPS,
            num_samples=texts,
        )  # fmt: skip
        return bare_linears(network, writes)

    alone, shared = in_turns(args.repeats, products(1), products(args.clients))
    return float(args.clients * alone.cpu / shared.cpu)


def row(address: str, network: Any, alpha_0: float, args: argparse.Namespace) -> str:
    """One line of the table."""
    seconds: dict[int, list[float]] = {1: [], args.clients: []}
    written = args.clients * args.tokens
    for number in range(args.repeats + 1):
        seeds = range(number * args.clients, (number + 1) * args.clients)
        for width, found in seconds.items():
            started = time.perf_counter()
            with ThreadPoolExecutor(width) as pool:
                answers = pool.map(partial(ask, address, args.tokens, alpha_0), seeds)
                assert sum(answers) == written
            found.append(time.perf_counter() - started)
    slow, fast = (statistics.median(found[1:]) for found in seconds.values())
    return (
        f"| {alpha_0} | {args.clients} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} "
        f"| {bare_gain(network, alpha_0, args):.1f} | {written / fast:,.0f} |"
    )


def main() -> None:
    """Prints one row for each alpha_0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("runs/demo/bundle"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not args.bundle.exists():
        print(f"{args.bundle} is not there: `make demo` makes one")
        return
    torch.set_num_threads(1)
    network = AutoModelForMaskedLM.from_pretrained(
        args.bundle, trust_remote_code=True, dtype=torch.float32
    )
    process, address = start(args.bundle, args.clients)
    columns = ["alpha_0", "requests", "one after another s", "at once s", "ratio"]
    columns += ["of bare products", "tokens/s at once"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    try:
        for alpha_0 in args.alphas:
            print(row(address, network, alpha_0, args), flush=True)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
