"""`make demo`: the whole pipeline on real text, in a few minutes on two CPU cores.

Every step is a command that you can type yourself; it is printed before it runs.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from esolm.pipeline.checkpoint.commit import committed, step_of
from esolm.pipeline.run.history import read_lines

CONFIG = Path(__file__).parent.parent / "configs" / "run" / "demo.yaml"
FIRST_LAYOUT = ["parallel.tp=2", "parallel.zero=1"]
SECOND_LAYOUT = ["parallel.tp=1", "parallel.zero=2"]
LAYOUTS = ["TP2, ZeRO-1", "DP2, ZeRO-2"]
SAMPLE_LENGTH = 256
RANKS = 2

console = Console()


def main() -> None:
    """Runs the demo; its figures are printed and written to OUT/summary.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="replaced if it exists")
    parser.add_argument(
        "--text", type=Path, nargs="*", help="files or folders; default: Python's own library"
    )
    parser.add_argument("--steps", type=int, help="training steps; default: the configuration's")
    arguments = parser.parse_args()
    started = time.monotonic()
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    arguments.out.mkdir(parents=True)
    # One thread for each rank: the other core may be busy, and threads that wait for it spin.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    use_cpu_without_enough_gpus()
    settings = [] if arguments.steps is None else [f"train.steps={arguments.steps}"]
    summary = run_demo(arguments.out, arguments.text, settings)
    summary["seconds"] = round(time.monotonic() - started, 1)
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    show(summary)


def run_demo(out: Path, text: list[Path] | None, settings: list[str]) -> dict[str, Any]:
    """Prepares, trains, kills, resumes, exports and samples; returns the figures.

    settings: key=value pairs that override the demo's training configuration.
    """
    inputs = [str(path) for path in text] if text else ["--from-python-stdlib"]
    data, run, bundle = out / "data", out / "train", out / "bundle"
    heading("1. Real text becomes token tars")
    tokenizer = str(out / "tokenizer")
    # A small sample is quick, and it is enough for so few pieces.
    quick = ["--vocab-size", "4096", "--max-sentences", "3000"]
    esolm("prep", "tokenizer", *inputs, "--out", tokenizer, *quick)
    prepare = ["--tokenizer", tokenizer, "--out", str(data), "--valid-fraction", "0.05"]
    esolm("prep", "tokenize", *inputs, *prepare, "--tasks", "4", "--workers", "2")
    esolm("prep", "merge", str(data))
    heading(f"2. Training in the layout {LAYOUTS[0]}, until the run is killed")
    paths = [f"run.dir={run}", f"data.path={data}"]
    train = ["train", str(CONFIG), "--ranks", str(RANKS), *paths, *settings]
    kill_after_a_checkpoint([*train, *FIRST_LAYOUT], run)
    heading(f"3. The same run, resumed in the layout {LAYOUTS[1]}")
    esolm(*train, *SECOND_LAYOUT)
    heading("4. The checkpoint becomes a bundle that has proved itself")
    esolm("export", str(run), "--out", str(bundle))
    heading("5. The bundle writes text: in parallel steps first, then left to right")
    sampled = sample(bundle)
    heading("6. The bundle behind an address fills a gap")
    filled = fill_a_gap(bundle)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [line["valid_loss"] for line in metrics if "valid_loss" in line]
    speeds = sorted(line["tokens_per_second"] for line in metrics if "tokens_per_second" in line)
    record = json.loads((bundle / "export.json").read_text())
    return {
        "tokens": prepared_tokens(data),
        "tokens_per_second": round(speeds[len(speeds) // 2], 1),
        "valid_loss_first": round(validations[0], 4),
        "valid_loss_last": round(validations[-1], 4),
        "layouts": LAYOUTS,
        "bundle_bytes": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
        "gate": "passed",
        "gate_checks": sorted(record["gate"]),
        "cached_ratio": round(sampled["compare"]["ratio"], 2),
        "filled": filled,
    }


def use_cpu_without_enough_gpus() -> None:
    """Hides the GPUs if there are too few.

    Two ranks cannot share a GPU, and the figures of all parts should be those of one device.
    """
    import torch

    if torch.cuda.device_count() < RANKS:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def esolm(*arguments: str) -> None:
    """Runs one command of the project and ends the demo if it fails."""
    command = announce(arguments)
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        sys.exit(f"demo stopped: `esolm {' '.join(arguments)}` ended with exit code {code}")


def kill_after_a_checkpoint(arguments: list[str], run: Path) -> None:
    """Starts training and kills all of it, as a power cut would, some steps after a checkpoint."""
    process = subprocess.Popen(announce(tuple(arguments)), start_new_session=True)
    while process.poll() is None and not has_steps_to_repeat(run):
        time.sleep(0.05)
    if process.poll() is not None:
        sys.exit(f"demo stopped: training ended with exit code {process.returncode}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    console.print("[bold red]killed[/] (kill -9 of every process of the run)")


def has_steps_to_repeat(run: Path) -> bool:
    """Whether there is a checkpoint, and a step after the newest one in the metrics."""
    checkpoints = committed(run / "checkpoints")
    logged = [line["step"] for line in read_lines(run / "metrics.jsonl")]
    return bool(checkpoints and logged) and logged[-1] > step_of(checkpoints[-1])


def sample(bundle: Path) -> dict[str, Any]:
    """Shows two samples and returns the comparison of cached with uncached decoding."""
    shown = ("generate", str(bundle), "--prompt", "def ", "--length", str(SAMPLE_LENGTH))
    esolm(*shown, "--alpha-0", "0.5", "--steps", "32", "--top-p", "0.9", "--num-samples", "2")
    measured = (*shown, "--ignore-eos", "--alpha-0", "0.5", "--steps", "64", "--compare", "--json")
    answer = subprocess.run(announce(measured), check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


def fill_a_gap(bundle: Path) -> str | None:
    """Asks `esolm serve` for the middle of a text; None where its extra is not installed."""
    if importlib.util.find_spec("fastapi") is None:
        console.print("left out: pip install 'esolm[serve]'", markup=False)
        return None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(announce(("serve", str(bundle), "--port", str(port))))
    try:
        address = f"http://127.0.0.1:{port}"
        while not answers(f"{address}/ready"):
            if process.poll() is not None:
                sys.exit(f"demo stopped: the server ended with exit code {process.returncode}")
            time.sleep(0.1)
        body = json.dumps({"segments": ["def ", {"gap": 12}, "return"], "alpha_0": 0.5, "seed": 0})
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{address}/v1/infill", body.encode(), headers)
        console.print(f"[bold]$ curl {address}/v1/infill -d '{body}'[/]", highlight=False)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            text: str = json.load(answer)["text"]
    finally:
        process.terminate()
        code = process.wait(60)
    if code:
        sys.exit(f"demo stopped: the server ended with exit code {code}")
    console.print(text, markup=False)
    return text


def answers(address: str) -> bool:
    """Whether a server is there, and says so."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.URLError:
        return False


def prepared_tokens(data: Path) -> int:
    """Returns the number of tokens of all splits."""
    from esolm.pipeline.data.dataset import TokenDataset

    return sum(TokenDataset(data, split).num_tokens for split in ("train", "valid"))


def announce(arguments: tuple[str, ...]) -> list[str]:
    console.print(f"[bold]$ esolm {' '.join(arguments)}[/]", highlight=False)
    return [sys.executable, "-W", "ignore", "-m", "esolm", *arguments]


def heading(text: str) -> None:
    console.print()
    console.rule(text, align="left")


def show(summary: dict[str, Any]) -> None:
    table = Table(title="demo")
    table.add_column("what")
    table.add_column("figure", justify="right")
    loss = f"{summary['valid_loss_first']:.3f} -> {summary['valid_loss_last']:.3f} nats/token"
    rows = {
        "tokens prepared": f"{summary['tokens']:,}",
        "training speed": f"{summary['tokens_per_second']:,.0f} tokens/s",
        "validation bound": loss,
        "layouts": " -> ".join(summary["layouts"]),
        "bundle": f"{summary['bundle_bytes'] / 1e6:.1f} MB",
        "gate": f"{summary['gate']}: {', '.join(summary['gate_checks'])}",
        "cached / uncached decoding": f"{summary['cached_ratio']:.1f}x at length {SAMPLE_LENGTH}",
        "seconds": f"{summary['seconds']:.0f}",
    }
    for what, figure in rows.items():
        table.add_row(what, figure)
    console.print(table)


if __name__ == "__main__":
    main()
