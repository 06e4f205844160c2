"""The pre-flight step of a training job: is every node fit to train on?

One process per node, or one per rank where bandwidth is measured too. A node that is fit leaves
NODE.ok in the reports folder; one that is not leaves NODE.failed with the reasons, one that hangs
leaves nothing, and the batch script excludes both. Needs torch only to measure bandwidth.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Checks this node; exit code 0 if it is fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--min-free-gb", type=float, default=0.0)
    parser.add_argument("--clock", type=float, help="what the first node's clock said at the start")
    parser.add_argument("--max-clock-skew", type=float, default=30.0)
    parser.add_argument("--min-allreduce-gb-per-second", type=float, default=0.0)
    given = parser.parse_args()
    node = os.environ.get("SLURMD_NODENAME", platform.node())
    problems: list[str] = []
    is_first = os.environ.get("SLURM_LOCALID", "0") == "0"
    if is_first:
        folders = [given.run_dir, Path(os.environ.get("TMPDIR", tempfile.gettempdir()))]
        problems += clock_problems(given.clock, given.max_clock_skew)
        problems += [text for path in folders for text in disk_problems(path, given.min_free_gb)]
        problems += gpu_problems(given.gpus)
    if given.min_allreduce_gb_per_second > 0:
        from pipeline.slurm.bandwidth import bandwidth_problems

        problems += bandwidth_problems(given.min_allreduce_gb_per_second)
    if not is_first:
        return 0  # the node's first process speaks for it
    verdict = "failed" if problems else "ok"
    (given.reports / f"{node}.{verdict}").write_text(f"{node}: {'; '.join(problems)}\n")
    print(f"{node}: {'; '.join(problems) or 'fit'}", file=sys.stderr)
    return 1 if problems else 0


def clock_problems(reference: float | None, most_seconds: float) -> list[str]:
    """Compares this node's clock with another's reading, taken just before this process started."""
    if reference is None:
        return []
    ahead = time.time() - reference
    # Behind is wrong at once (the reading was cut to whole seconds); ahead includes the start.
    if -1.0 <= ahead <= most_seconds:
        return []
    return [f"the clock is {ahead:+.0f} s off that of the first node"]


def disk_problems(folder: Path, least_gb: float) -> list[str]:
    """Whether a folder can be written to and has room."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"written by the pre-flight check")
            file.flush()
            os.fsync(file.fileno())
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


if __name__ == "__main__":
    sys.exit(main())
