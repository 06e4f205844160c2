"""Whoever cancels a job at the worst moment: while its batch script puts it back into the queue."""

import time
from pathlib import Path

import pytest

from esolm.pipeline.slurm.chain import cancel_chain
from esolm.pipeline.slurm.status import chain_status
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import (
    events,
    explain,
    submit_stub,
    wait_for,
    wait_for_requeues,
    write_program,
)

pytestmark = [pytest.mark.slurm, pytest.mark.check, pytest.mark.timeout(600)]

# Longer than a requeued job of this cluster waits before it may start.
STABLE_SECONDS = 12
# Seconds from the event to the scancel: before Slurm's answer, while the job leaves, once it waits.
DELAYS = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0)
# As a busy controller is slow to answer; what it is asked is real.
SLOWLY = '[ "$1" = requeue ] && sleep 4\nexec /usr/bin/scontrol "$@"\n'


def test_cancelled_at_the_moment_of_the_requeue(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    """By scancel, as fast as it can be after the event, and at moments after it."""
    stub = 'until [ -e "{run}/end" ]; do sleep 0.1; done; exit 85'
    runs = [tmp_path / str(number) / "run" for number in range(len(DELAYS))]
    jobs = [submit_stub(run.parent, dataset, stub) for run in runs]
    for run, job, delay in zip(runs, jobs, DELAYS, strict=True):
        wait_for(cluster, run, lambda run=run: events(run, "training"), "a start")
        (run / "end").touch()
        wait_for_requeues(cluster, run)
        time.sleep(delay)
        cluster.run("scancel", job)
    _stay_cancelled(cluster, runs)


def test_cancelled_while_the_requeue_is_on_its_way(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    """By scancel, and by `esolm cancel`: what takes the job back comes after both."""
    write_program(tmp_path / "scontrol", SLOWLY)
    slow = (f"PATH={tmp_path}:$PATH",)
    runs = [tmp_path / name / "run" for name in ("scancel", "esolm")]
    by_scancel, _ = [submit_stub(run.parent, dataset, "exit 85", setup=slow) for run in runs]
    for run in runs:
        wait_for_requeues(cluster, run)
    cluster.run("scancel", by_scancel)
    assert [job.stage for job, _ in cancel_chain(runs[1])] == ["train"]
    _stay_cancelled(cluster, runs)


def test_brought_back_after_esolm_cancel(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    """The script looks at its top as well; nothing is trained."""
    run = tmp_path / "run"
    job = submit_stub(tmp_path, dataset, "exit 85")
    wait_for_requeues(cluster, run)
    (run / "slurm" / "CANCELLED").touch()
    cluster.wait_for_state(job, "CANCELLED", timeout=60)
    assert len(events(run, "training")) == 1, explain(run)
    assert "before this start" in chain_status(run)[0].detail


def _stay_cancelled(cluster: MiniCluster, runs: list[Path]) -> None:
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", 60)
    time.sleep(STABLE_SECONDS)
    for run in runs:
        assert chain_status(run)[0].state == "CANCELLED", f"{run}\n{explain(run)}"
        assert len(events(run, "training")) == 1, f"{run}\n{explain(run)}"
