"""The pre-flight step of a training job: is every node fit to train on?

One process per node, or one per rank where bandwidth is measured too. Each node leaves its verdict
in the reports folder, with the reasons:

NODE.ok          fit
NODE.failed      unfit
NODE.began       fit as far as could be seen; measuring the bandwidth has not come to an end
NODE.unmeasured  the same, and others may be why it could not be measured
NODE.unmet       the same, and it did not even meet the others

One that hangs leaves nothing. What follows from the verdicts decides the batch script. Needs torch
only to measure bandwidth and, where there are GPUs, to prove the kernels on each.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from esolm.data_prep.files import probe_writing

if TYPE_CHECKING:
    import torch


def main() -> int:
    """Checks this node; exit code 0 if it is fit."""
    given = _arguments()
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    is_first = os.environ.get("SLURM_LOCALID", "0") == "0"  # it speaks for its node
    problems = _node_problems(given) if is_first else []
    verdict = "failed" if problems else "ok"
    if given.min_allreduce_gb_per_second > 0:
        if is_first:  # before others can spoil it
            write_verdict(given.reports, node, "failed" if problems else "began", problems)
        verdict, problems = _measured(given, problems)
    if not is_first:
        return 0
    write_verdict(given.reports, node, verdict, problems)
    print(f"{node}: {'; '.join(problems) or 'fit'}", file=sys.stderr)
    return 0 if verdict == "ok" else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--head-dim", type=int, default=64, help="of the kernels to prove")
    parser.add_argument("--min-free-gb", type=float, default=0.0)
    parser.add_argument("--min-allreduce-gb-per-second", type=float, default=0.0)
    parser.add_argument("--ranks-per-node", type=int, default=1)
    parser.add_argument("--timeout-seconds", type=float, default=300.0, help="for everything")
    return parser.parse_args()


def _node_problems(given: argparse.Namespace) -> list[str]:
    folders = [given.run_dir, Path(os.environ.get("TMPDIR", tempfile.gettempdir()))]
    problems = [text for path in folders for text in disk_problems(path, given.min_free_gb)]
    problems += gpu_problems(given.gpus)
    if given.gpus and not problems:
        import torch

        for index in range(torch.cuda.device_count()):
            problems += kernel_problems(torch.device("cuda", index), given.head_dim)
    return problems


def _measured(given: argparse.Namespace, found: list[str]) -> tuple[str, list[str]]:
    """The verdict on this rank's node with its bandwidth, and the reasons."""
    from esolm.pipeline.slurm.bandwidth import UnmeasuredError, UnmetError, bandwidth_problems

    # It has that many steps, of which each may have to wait for a rank that is gone.
    patience = timedelta(seconds=given.timeout_seconds / 5)
    least, ranks = given.min_allreduce_gb_per_second, given.ranks_per_node
    try:
        problems = bandwidth_problems(least, ranks, given.gpus > 0, found, patience)
    except UnmeasuredError as error:
        verdict = "unmet" if isinstance(error, UnmetError) else "unmeasured"
        return ("failed", found) if found else (verdict, [str(error)])
    return "failed" if problems else "ok", problems


def write_verdict(reports: Path, node: str, verdict: str, reasons: list[str]) -> None:
    """Leaves NODE.VERDICT in place of any other of the node."""
    (reports / f"{node}.{verdict}").write_text(f"{node}: {'; '.join(reasons)}\n")
    for other in {"ok", "failed", "began", "unmeasured", "unmet"} - {verdict}:
        (reports / f"{node}.{other}").unlink(missing_ok=True)


def disk_problems(folder: Path, least_gb: float) -> list[str]:
    """Whether a folder can be written to and has room."""
    try:
        probe_writing(folder, 1)
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return [f"{folder} cannot be written to: {error.strerror}"]
    if free < least_gb:
        return [f"{folder} has {free:.1f} GB free; {least_gb:g} are wanted"]
    return []


def gpu_problems(expected: int) -> list[str]:
    """GPUs that are missing, or have memory errors that could not be corrected."""
    if expected == 0:
        return []
    query = "--query-gpu=index,ecc.errors.uncorrected.volatile.total"
    try:
        finished = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi does not answer ({error})"]
    if finished.returncode != 0:
        return [f"nvidia-smi: {(finished.stderr or finished.stdout).strip()}"]
    rows = [line.split(", ") for line in finished.stdout.splitlines() if line.strip()]
    problems = []
    if len(rows) < expected:
        problems.append(f"{len(rows)} of {expected} GPUs are visible")
    for index, errors in rows:
        # "[N/A]" where the GPU has no ECC, or has it turned off.
        if errors.isdigit() and int(errors) > 0:
            problems.append(f"GPU {index} had {errors} uncorrected memory errors")
    return problems


def kernel_problems(device: torch.device, head_dim: int) -> list[str]:
    """The kernels of a run that compute wrongly on a device.

    One that cannot run at all is no fault of the node: the run goes on without it, and says so.
    """
    import torch

    from esolm.model.config import ModelConfig
    from esolm.pipeline.train.kernels import kernels_of, prove_kernels

    model = ModelConfig(vocab_size=2, mask_id=1, hidden_size=2 * head_dim, num_heads=2)
    found = prove_kernels(kernels_of(device), device, model, torch.bfloat16)
    return [f"{device}: {name} is {each.problem}" for name, each in found.items() if each.off]


if __name__ == "__main__":
    sys.exit(main())
