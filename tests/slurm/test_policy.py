"""When a training job comes back and when it does not: scancel, caps, DONE, unfit nodes."""

import time
from pathlib import Path

import pytest

from pipeline.slurm.chain import cancel_chain
from pipeline.slurm.status import chain_status
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import (
    events,
    explain,
    job_of,
    submit_run,
    wait_for_end,
    wait_for_step,
    write_profile,
    write_run,
)

pytestmark = pytest.mark.slurm

# Longer than a requeued job of this cluster waits before it may start.
STABLE_SECONDS = 12

# Programs that stand in for the interpreter, to end in ways that training does not by itself.
STUBS = {
    "never_saves": "exit 85",
    "saves": (
        "step=$(printf %08d $((SLURM_RESTART_COUNT + 1)))\n"
        'mkdir -p "{run}/checkpoints/step_$step"\n'
        'touch "{run}/checkpoints/step_$step/manifest.json"\n'
        "exit 85"
    ),
    "done": """echo '{{"step": 100}}' >"{run}/DONE"\nexit 85""",
    "bad_input": "echo 'error: the data is gone' >&2\nexit 64",
}


def test_what_ends_the_restarts(cluster: MiniCluster, dataset: Path, tmp_path: Path) -> None:
    jobs, runs = {}, {}
    for name, stub in STUBS.items():
        config = write_run(tmp_path / name, dataset, steps=100)
        runs[name] = tmp_path / name / "run"
        program = tmp_path / name / "python"
        program.write_text(f"#!/bin/bash\n{stub.format(run=runs[name])}\n")
        program.chmod(0o755)
        profile = write_profile(tmp_path / name, extra=f"python: {program}\n")
        profile.write_text(profile.read_text().replace("health: {", "health: {enabled: false, "))
        cap = 2 if name == "saves" else 10
        jobs[name] = job_of(submit_run(config, profile, f"slurm.max_restarts={cap}"))
    states = {
        "never_saves": "FAILED",
        "saves": "FAILED",
        "done": "COMPLETED",
        "bad_input": "FAILED",
    }
    for name, state in states.items():
        cluster.wait_for_state(jobs[name], state)
    restarts = {name: int(cluster.job(job)["Restarts"]) for name, job in jobs.items()}
    assert restarts == {"never_saves": 3, "saves": 2, "done": 0, "bad_input": 0}
    reasons = {name: chain_status(run)[0].detail for name, run in runs.items()}
    assert "two restarts in a row made no progress beyond step 0" in reasons["never_saves"]
    assert "restart 2, the last of slurm.max_restarts" in reasons["saves"]
    assert "exit code 64: error: the data is gone" in reasons["bad_input"]


def test_a_preflight_that_cannot_run_blames_no_node(
    cluster: MiniCluster, dataset: Path, tmp_path: Path
) -> None:
    config, run = write_run(tmp_path, dataset, steps=4), tmp_path / "run"
    profile = write_profile(tmp_path, extra=f"python: {tmp_path}/no/such/python\n")
    job = job_of(submit_run(config, profile))
    record = cluster.wait_for_state(job, "FAILED")
    assert record["ExcNodeList"] == "(null)"
    assert "the pre-flight could not run" in chain_status(run)[0].detail


def test_cancelled_stays_cancelled(cluster: MiniCluster, dataset: Path, tmp_path: Path) -> None:
    """During training, during a save, while requeued; and by our own command."""
    names = ("training", "saving", "requeued")
    jobs, runs = {}, {name: tmp_path / name / "run" for name in names}
    for name in names:
        config = write_run(tmp_path / name, dataset, steps=100_000, save_every=3)
        profile = write_profile(tmp_path / name)
        size = ["model.hidden_size=768", "model.num_layers=4"] if name == "saving" else []
        jobs[name] = job_of(submit_run(config, profile, *size))
    wait_for_step(cluster, runs["training"], 2)
    assert [job.job_id for job, _ in cancel_chain(runs["training"])] == [jobs["training"]]
    wait_for_step(cluster, runs["requeued"], 2)
    cluster.run("scontrol", "requeue", jobs["requeued"])
    cluster.wait_for_state(jobs["requeued"], "PENDING", timeout=60)
    cluster.run("scancel", jobs["requeued"])
    cluster.wait_until(
        lambda: list(runs["saving"].glob("checkpoints/step_*.tmp")),
        f"a save\n{explain(runs['saving'])}",
        120,
    )
    cluster.run("scancel", jobs["saving"])
    for job in jobs.values():
        cluster.wait_for_state(job, "CANCELLED", timeout=60)
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", 60)
    logs = {name: (run / "logs" / "rank_0.log").read_text() for name, run in runs.items()}
    time.sleep(STABLE_SECONDS)
    for name, job in jobs.items():
        assert cluster.job(job)["JobState"] == "CANCELLED", name
        assert (runs[name] / "logs" / "rank_0.log").read_text() == logs[name], name
        assert events(runs[name], "requeued") == [], name


def test_an_unfit_node_is_excluded(cluster: MiniCluster, dataset: Path, tmp_path: Path) -> None:
    """The first node's scratch folder is broken; bandwidth is measured on the way."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "node1").write_text("not a folder")
    extra = f"scratch: {scratch}/$SLURMD_NODENAME\n"
    profile = write_profile(tmp_path, tasks=2, extra=extra)
    measured = "health: {min_allreduce_gb_per_second: 0.0001, "
    profile.write_text(profile.read_text().replace("health: {", measured))
    config, run = write_run(tmp_path, dataset, steps=3), tmp_path / "run"
    job = job_of(submit_run(config, profile))
    cluster.wait_until(lambda: events(run, "requeued"), f"a requeue\n{explain(run)}", 120)
    why = events(run, "requeued")[0].detail
    assert why.startswith("unfit: node1 (node1: ")
    assert f"{scratch}/node1 cannot be written to" in why
    wait_for_end(cluster, run, job)
    record = cluster.job(job)
    assert record["ExcNodeList"] == "node1"
    assert record["NodeList"] != "node1"
    assert record["Restarts"] == "1"
