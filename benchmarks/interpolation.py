"""Validation bounds of Eso-LM (B) between diffusion and left to right, at equal steps.

    python benchmarks/interpolation.py --out runs/interpolation

Text is the Python standard library. Every run sees the same rows in the same order for its seed;
only alpha_0 differs (and kappa, which is 0.5 but at the ends). Prints the table of
docs/evaluation.md; a second call with the same --out trains nothing again.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ALPHAS = (1.0, 0.5, 0.25, 0.125, 0.0)
CONFIG = Path(__file__).parents[1] / "configs" / "run" / "demo.yaml"
SETTINGS = (
    "model.hidden_size=128", "model.num_layers=2", "model.num_heads=4",
    "model.ffn_hidden_size=256", "model.cond_dim=32",
    "train.seq_len=64", "train.global_batch_size=16", "train.micro_batch_size=8",
    "train.valid_every_steps=0", "train.log_every_steps=100", "checkpoint.every_steps=100000",
    "checkpoint.asynchronous=false", "parallel.tp=1",
    "optimizer.lr=3e-3", "optimizer.warmup_steps=50", "optimizer.ema_decay=0.99",
)  # fmt: skip


def main() -> None:
    """Prepares, trains and measures; prints progress on stderr and the table on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/interpolation"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=256, help="validation rows")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one core each")
    arguments = parser.parse_args()
    started = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    data = prepare(arguments.out)
    # The slowest first, so that the workers end together.
    jobs = [
        (arguments.out, data, alpha_0, seed, arguments.steps, arguments.rows)
        for seed in range(1, arguments.seeds + 1)
        for alpha_0 in sorted(ALPHAS)
    ]
    found: dict[tuple[float, int], dict[str, Any]] = {}
    # A process for each run: what one training leaves in it is not the next one's.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            alpha_0, seed, bound = done.result()
            found[alpha_0, seed] = bound
            print(f"alpha_0 {alpha_0:g}, seed {seed}: {bound['nats_per_token']:.4f} nats/token, "
                  f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    print(table(found, arguments.seeds))


def prepare(out: Path) -> Path:
    """The dataset, made once."""
    data, tokenizer = out / "data", out / "tokenizer"
    if not (data / "manifest.json").exists():
        text = "--from-python-stdlib"
        esolm("tokenizer", text, "--vocab-size", "1024", "--out", str(tokenizer))
        made = ("--tokenizer", str(tokenizer), "--out", str(data), "--valid-fraction", "0.05")
        esolm("tokenize", text, *made, "--tasks", "2", "--workers", "2")
        esolm("merge", str(data))
    return data


def esolm(*arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "esolm", "prep", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr)


def run(job: tuple[Path, Path, float, int, int, int]) -> tuple[float, int, dict[str, Any]]:
    """Trains one network, unless that is done, and measures its bound: (alpha_0, seed, bound)."""
    out, data, alpha_0, seed, steps, rows = job
    import warnings

    warnings.filterwarnings("ignore")
    from esolm.pipeline.run.config import load_config
    from esolm.pipeline.train.run import train

    directory = out / f"alpha_{alpha_0:g}_seed_{seed}_steps_{steps}"
    kappa = alpha_0 if alpha_0 in (0.0, 1.0) else 0.5
    own = [f"run.dir={directory}", f"data.path={data}", f"seed={seed}", f"train.steps={steps}",
           f"objective.alpha_0={alpha_0}", f"objective.kappa={kappa}"]  # fmt: skip
    report = directory / f"bound_{rows}.json"
    if not report.exists():
        with open(os.devnull, "w") as nowhere:
            shown, sys.stderr = sys.stderr, nowhere
            try:
                code = train(load_config(CONFIG, [*SETTINGS, *own]))
            finally:
                sys.stderr = shown
        assert code == 0, f"training ended with {code}"
        report.write_text(json.dumps(measure_bound(directory, data, rows)))
    return alpha_0, seed, json.loads(report.read_text())


def measure_bound(directory: Path, data: Path, num_rows: int) -> dict[str, Any]:
    from esolm.pipeline.evaluate.likelihood import Settings, measure
    from esolm.pipeline.evaluate.ranks import join
    from esolm.pipeline.evaluate.rows import dataset_rows
    from esolm.pipeline.evaluate.subject import open_subject
    from esolm.pipeline.parallel.bootstrap import shutdown_processes

    info, device = join()
    subject = open_subject(directory, "ema", device)
    rows = dataset_rows(data, "valid", subject, None, num_rows)
    report = measure(subject, subject.objective, rows, Settings(num_draws=4), info)
    shutdown_processes()
    assert report is not None
    bound: dict[str, Any] = report["nelbo"]
    return bound


def table(found: dict[tuple[float, int], dict[str, Any]], seeds: int) -> str:
    """Nats per token by alpha_0 and seed, and what the noise of the draws adds."""
    numbers = range(1, seeds + 1)
    heads = " | ".join(f"seed {seed}" for seed in numbers)
    lines = [f"| alpha_0 | {heads} | mean | perplexity bound | error of the draws |",
             "|---" * (seeds + 4) + "|"]  # fmt: skip
    for alpha_0 in ALPHAS:
        bounds = [found[alpha_0, seed] for seed in numbers]
        losses = [bound["nats_per_token"] for bound in bounds]
        error = max(bound["standard_error"] for bound in bounds)
        mean = statistics.mean(losses)
        cells = " | ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"| {alpha_0:g} | {cells} | {mean:.4f} | {math.exp(mean):.1f} | {error:.4f} |")
    monotone = all(
        found[a, seed]["nats_per_token"] > found[b, seed]["nats_per_token"]
        for seed in numbers
        for a, b in itertools.pairwise(ALPHAS)
    )
    lines.append(f"\nFalls from alpha_0 = 1 to 0 in every seed: {'yes' if monotone else 'no'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
