"""Faults that no node dies of: a killed rank, srun, batch script or controller."""

import re
from pathlib import Path

import pytest

from esolm.pipeline.slurm.status import chain_status
from tests.slurm import victims
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import (
    events,
    explain,
    health,
    job_of,
    newest_step,
    submit_run,
    submit_stub,
    wait_for,
    wait_for_requeues,
    wait_for_step,
    write_profile,
    write_program,
    write_run,
)

pytestmark = [pytest.mark.slurm, pytest.mark.check, pytest.mark.timeout(600)]

VICTIMS = ("rank", "srun", "script")


def test_killed_with_every_node_alive(cluster: MiniCluster, dataset: Path, tmp_path: Path) -> None:
    """A rank of two and srun come back by themselves; of a killed batch script status tells."""
    runs = {name: tmp_path / name / "run" for name in VICTIMS}
    jobs = {}
    for name, run in runs.items():
        config = write_run(run.parent, dataset, steps=100_000, save_every=5)
        nodes = "slurm.nodes=2" if name == "rank" else "slurm.nodes=1"
        jobs[name] = job_of(submit_run(config, write_profile(run.parent), nodes))
    kills = {
        "rank": lambda job: victims.ranks(cluster, job)[1].kill(),
        "srun": lambda job: victims.srun(cluster, job).kill(),
        "script": lambda job: victims.batch_script(cluster, job).kill(),
    }
    details = {
        "rank": r"exit code 137, signal 9, KILL: .*Error.* \(node\d: task 1: Killed\)",
        "srun": r"srun died of signal 9, KILL",
    }
    for name, run in runs.items():
        wait_for_step(cluster, run, 7)
        wait_for(cluster, run, lambda run=run: _committed(run) >= 5, "a checkpoint")
        kills[name](jobs[name])
        if name in details:
            _watch_the_return(cluster, run)
            assert re.fullmatch(details[name], events(run, "requeued")[0].detail), explain(run)
            assert int(events(run, "training")[1].detail.split()[2]) >= 5, explain(run)
            assert cluster.job(jobs[name])["Restarts"] == "1"
    cluster.wait_for_state(jobs["script"], "FAILED", timeout=60)
    [status] = chain_status(runs["script"])
    ended = r"ended without a word \(JobLaunchFailure, exit code and signal 0:9\): its batch script"
    assert re.match(ended, status.detail), status.detail


def test_a_fault_that_would_only_come_again(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    """Without progress since the start the chain ends, and what ends with 0 undone is not done."""
    # srun may drop what a task says in the moment of its death.
    stubs = {
        "error": "echo '[rank0]: RuntimeError: no good' >&2; exit 1",
        "undone": "exit 0",
        "memory": "echo 'slurmstepd: error: Detected 1 oom_kill event' >&2; sleep 1; kill -KILL $$",
    }
    reasons = {
        "error": r"exit code 1: \[rank0\]: RuntimeError: no good \(node\d: task 0: .*\)",
        "undone": "the ranks ended with 0 before all steps were done",
        "memory": r"exit code 137, signal 9, KILL, out of memory \(node\d: task 0: Killed\)",
    }
    jobs = {name: submit_stub(tmp_path / name, dataset, stub) for name, stub in stubs.items()}
    for name, job in jobs.items():
        record = cluster.wait_for_state(job, "FAILED")
        assert record["Restarts"] == "0", name
        [status] = chain_status(tmp_path / name / "run")
        assert re.fullmatch(f"failed: {reasons[name]}", status.detail), status.detail


def test_the_controller_is_killed_in_the_moment_of_the_requeue(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    """The script asks again until there is one that answers."""
    run = tmp_path / "run"
    slowly = '[ "$1" = requeue ] && sleep 3\nexec /usr/bin/scontrol "$@"\n'
    write_program(tmp_path / "scontrol", slowly)
    stub = """
        [ -n "$SLURM_RESTART_COUNT" ] && echo '{{"step": 100}}' >"{run}/DONE" && exit 0
        sleep 8 # until the controller has saved that there is such a job
        exit 85
        """
    job = submit_stub(tmp_path, dataset, stub, setup=(f"PATH={tmp_path}:$PATH",))
    wait_for_requeues(cluster, run)
    cluster.kill_controller()
    log = run / "slurm" / "logs" / f"train-{job}.log"
    wait_for(cluster, run, lambda: "Unable to contact" in log.read_text(), "a question")
    cluster.start_controller()
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.job(job)["Restarts"] == "1", explain(run)
    assert len(events(run, "requeued")) == 1, explain(run)


def _watch_the_return(cluster: MiniCluster, run: Path) -> None:
    """Until a killed job trains beyond the step it had reached; status follows it there."""
    wait_for_requeues(cluster, run)
    reached, seen = newest_step(run), []
    while len(events(run, "training")) < 2:
        seen.append(health(run))
        assert len(seen) < 1000, explain(run)
    states = {found["state"] for found in seen}
    assert states <= {"waiting", "starting", "running"}, (seen, explain(run))
    assert "starting" in states, seen
    wait_for_step(cluster, run, reached + 5)


def _committed(run: Path) -> int:
    manifests = run.glob("checkpoints/step_*[0-9]/manifest.json")
    return max((int(path.parent.name[-8:]) for path in manifests), default=0)
