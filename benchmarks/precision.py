"""What bf16 and int8 cost and gain: likelihood of real text, likeliest tokens, seconds of writing.

The likelihood under drawn orders is a mean of log p over one order for each row, the same orders in
every dtype: the sampled negative ELBO. Seconds are of the CPU, in turns, medians.

    python benchmarks/precision.py runs/demo/bundle --text docs/training.md
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esolm.pipeline.export.bundle.likelihood_esolm import drawn_orders, left_to_right_log_p
from esolm.pipeline.generate import COMPUTED_IN, Bundle, load_bundle


def rows_of(bundle: Bundle, text: Path, count: int) -> Tensor:
    """int64 [rows, L] of the text's tokens, of the length of training."""
    assert bundle.tokenizer is not None, "a bundle without a tokenizer reads no text"
    length = bundle.model.config.seq_len
    ids = torch.tensor(bundle.tokenizer.encode(text.read_text()))
    whole = min(len(ids) // length, count)
    if not whole:
        raise SystemExit(f"{text} has {len(ids)} tokens; a row has {length}")
    return ids[: whole * length].view(whole, length)


def read(model: Any, rows: Tensor) -> tuple[float, float, Tensor]:
    """Nats per token from left to right and under drawn orders, and the likeliest tokens."""
    orders = drawn_orders(rows, 1.0, seed=0, number=0)
    plain, drawn, likeliest = 0.0, 0.0, []
    for row, order in zip(rows[:, None], orders[:, None], strict=True):
        plain -= float(model.log_likelihood(row))
        drawn -= float(model.log_likelihood(row, order=order))
        likeliest.append(left_to_right_log_p(model, row).argmax(-1))
    return plain / rows.numel(), drawn / rows.numel(), torch.cat(likeliest)


def seconds_to_write(model: Any, seed: int, alpha_0: float) -> float:
    """CPU seconds of one text."""
    started = time.process_time()
    model.generate(length=model.config.seq_len, num_steps=32, alpha_0=alpha_0, seed=seed)
    return time.process_time() - started


def main() -> None:
    """Prints one row per dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("runs/demo/bundle"))
    parser.add_argument("--text", type=Path, default=Path("docs/training.md"))
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--alpha-0", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not args.bundle.exists():
        print(f"{args.bundle} is not there: `make demo` makes one")
        return
    bundles = {dtype: load_bundle(args.bundle, dtype) for dtype in ("fp32", *COMPUTED_IN)}
    rows = rows_of(bundles["fp32"], args.text, args.rows)
    seconds: dict[str, list[float]] = {dtype: [] for dtype in bundles}
    for seed in range(args.repeats + 1):
        for dtype, bundle in bundles.items():
            seconds[dtype].append(seconds_to_write(bundle.model, seed, args.alpha_0))
    print(f"{rows.numel()} tokens of {args.text}, {torch.get_num_threads()} threads")
    print("| dtype | nats per token, left to right | in drawn orders | likeliest token as in "
          "fp32 | CPU seconds of a text |\n|---|---|---|---|---|")  # fmt: skip
    reference: Tensor | None = None
    for dtype, bundle in bundles.items():
        plain, drawn, likeliest = read(bundle.model, rows)
        reference = likeliest if reference is None else reference
        same = float((likeliest == reference).double().mean())
        median = statistics.median(seconds[dtype][1:])
        print(f"| {dtype} | {plain:.4f} | {drawn:.4f} | {same:.2%} | {median:.2f} |")


if __name__ == "__main__":
    main()
