"""What sharing passes gains: requests to `esolm serve` one after another and all at once.

Both in turns against one server, which this script starts; medians of seconds. Beside each ratio
stands that of the passes' bare matrix products, one thread: sharing cannot gain more in them.

    python benchmarks/serving.py runs/demo/bundle --clients 16 --tokens 128
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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

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


def bare_gain(bundle: Path, alpha_0: float, args: argparse.Namespace) -> float:
    """How many times faster the products of all requests are in shared passes than in their own.

    A pass feeds a clean token and a mask for each new token of a text, and scores the masks.
    """
    import torch

    torch.set_num_threads(1)
    sizes = json.loads((bundle / "config.json").read_text())
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    block = [torch.randn(out, into) for into, out in shapes]
    head = torch.randn(sizes["vocab_size"], hidden)

    def products(new: int) -> float:
        inputs = {width: torch.randn(2 * new, width) for width in (hidden, inner)}
        seconds = []
        for _ in range(9):
            started = time.process_time()
            for _ in range(20):
                for weight in block * sizes["num_hidden_layers"]:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)
                torch.nn.functional.linear(inputs[hidden][:new], head)
            seconds.append(time.process_time() - started)
        return statistics.median(seconds)

    together = round(args.tokens * alpha_0)
    counts = {1: args.tokens - together}
    if together:
        counts[-(-together // STEPS)] = STEPS
    alone, shared = (
        sum(passes * products(width * new) for new, passes in counts.items())
        for width in (1, args.clients)
    )
    gain: float = args.clients * alone / shared
    return gain


def row(address: str, alpha_0: float, args: argparse.Namespace) -> str:
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
        f"| {bare_gain(args.bundle, alpha_0, args):.1f} | {written / fast:,.0f} |"
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
    process, address = start(args.bundle, args.clients)
    columns = ["alpha_0", "requests", "one after another s", "at once s", "ratio"]
    columns += ["of bare products", "tokens/s at once"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    try:
        for alpha_0 in args.alphas:
            print(row(address, alpha_0, args), flush=True)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
