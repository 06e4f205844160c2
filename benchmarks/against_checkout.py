"""A training step of this checkout against that of another one, in turns within one run.

Each has a process of its own, so that both are what they are; a step of one is followed by a step
of the other, and the median of the paired ratios of CPU seconds is what counts. The first step of
each must have the same loss.

    git worktree add /tmp/before COMMIT
    python benchmarks/against_checkout.py /tmp/before --threads 1
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

HERE = Path(__file__).resolve()
LOSS_TOLERANCE = 1e-4
"""Relative; of fp32 sums in another order."""
STEP = "step: "
"""What an answer begins with; libraries print as they like."""


def take_steps(rows: int, micro_batch: int) -> None:
    """Takes a step whenever a line comes in; answers with CPU seconds and loss.

    The checkout is the one whose packages are found first.
    """
    import torch

    from benchmarks import training_step
    from esolm.pipeline.parallel.bootstrap import (
        device_of,
        initialize_processes,
        process_info,
        shutdown_processes,
    )
    from esolm.pipeline.parallel.layout import Layout

    size = training_step.Size(512, 6, 8, 50258, 512, rows, micro_batch)
    model = replace(size.model(), dropout=0.1)
    info = process_info()
    initialize_processes(info, Layout(1, 1, 1, 1), device_of(info), timedelta(minutes=10))
    training_step.SIZES["here"] = size
    arguments = argparse.Namespace(size="here", micro_batch=None, zero=1, precision="fp32")
    config, batches = training_step.prepare(arguments, info)
    step = training_step.engine_loop(replace(config, model=model), batches)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for _ in sys.stdin:
        started = time.process_time()
        loss = step()
        seconds = time.process_time() - started
        print(f"{STEP}{json.dumps([seconds, loss])}", flush=True)
    shutdown_processes()


class Checkout:
    """A process that takes steps with the packages of a checkout."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        if not (folder / "esolm" / "model").exists():
            raise SystemExit(f"{folder} is no checkout of this repository: it has no esolm/model")
        sizes = ["--rows", str(args.rows), "--micro-batch", str(args.micro_batch)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(HERE), "--take-steps", *sizes],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(args.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> tuple[float, float]:
        """Returns the CPU seconds of a step and its loss."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        asked.write("\n")
        asked.flush()
        for line in answers:
            if line.startswith(STEP):
                seconds, loss = json.loads(line.removeprefix(STEP))
                return seconds, loss
        raise SystemExit("a checkout's process ended; its message stands above")

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.communicate()


def compare(args: argparse.Namespace) -> None:
    """Prints the seconds of both checkouts and their ratio."""
    folders = {"here": HERE.parent.parent, "there": args.checkout.resolve()}
    checkouts = {name: Checkout(folder, args) for name, folder in folders.items()}
    try:
        first = {name: checkout.step()[1] for name, checkout in checkouts.items()}
        if abs(first["here"] - first["there"]) > LOSS_TOLERANCE * abs(first["there"]):
            raise SystemExit(f"the checkouts do not compute the same: first losses {first}")
        pairs = [
            {name: checkout.step()[0] for name, checkout in checkouts.items()}
            for _ in range(args.rounds)
        ]
    finally:
        for checkout in checkouts.values():
            checkout.close()
    here, there = (statistics.median(pair[name] for pair in pairs) for name in ("here", "there"))
    ratios = sorted(pair["here"] / pair["there"] for pair in pairs)
    print(
        f"6 layers x 512, L 512, V 50,258, dropout 0.1, fp32, {args.rows} rows in micro-batches of "
        f"{args.micro_batch}, {args.threads} threads: {here:.2f} CPU seconds a step here, "
        f"{there:.2f} there; ratio {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f} over {args.rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, nargs="?", help="the folder of the other checkout")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--take-steps", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.take_steps:
        take_steps(args.rows, args.micro_batch)
    elif args.checkout is None:
        print("without another checkout there is nothing to compare; --help says how to make one")
    else:
        compare(args)


if __name__ == "__main__":
    main()
