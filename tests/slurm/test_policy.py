"""When a training job comes back and when it does not: scancel, caps, DONE, unfit nodes."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from esolm.pipeline.slurm.status import chain_status
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import (
    events,
    explain,
    job_of,
    newest_step,
    submit_run,
    submit_stub,
    wait_for,
    wait_for_end,
    wait_for_requeues,
    wait_for_step,
    write_profile,
    write_run,
)

pytestmark = [pytest.mark.slurm, pytest.mark.check, pytest.mark.timeout(1200)]

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
    "cancelled": """touch "{run}/slurm/CANCELLED"\nexit 85""",
    "bad_input": "echo 'error: the data is gone' >&2\nexit 64",
}


@dataclass(frozen=True)
class LeftAlone:
    """Two jobs whose ranks ended while there was no controller."""

    saved: Path
    failed: Path
    jobs: dict[Path, str]


@pytest.fixture(scope="module")
def left_alone(
    slurm: MiniCluster, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> LeftAlone:
    """No controller could say whether the one is cancelled and where the other's nodes are."""
    slurm.empty()
    folder = tmp_path_factory.mktemp("left_alone")
    stub = """
        [ -n "$SLURM_RESTART_COUNT" ] && echo '{{"step": 100}}' >"{run}/DONE" && exit 0
        touch "{run}/started_$SLURM_PROCID"
        until [ -e "{run}/alone" ]; do sleep 0.2; done
        """
    ends = {"saved": "exit 85", "failed": "echo 'ValueError: no good' >&2; exit 1"}
    jobs = {
        folder / name / "run": submit_stub(folder / name, dataset, stub + end, "slurm.nodes=2")
        for name, end in ends.items()
    }
    for run in jobs:
        wait_for(slurm, run, (run / "started_1").exists, "a start")
    slurm.stop_controller()
    for run, job in jobs.items():
        (run / "alone").touch()
        log = run / "slurm" / "logs" / f"train-{job}.log"
        slurm.wait_until(lambda log=log: "Unable to contact" in log.read_text(), "a question", 600)
    slurm.start_controller()
    slurm.wait_until(slurm.nodes_answer, "all nodes", 600)  # until then a submit is refused
    return LeftAlone(*jobs, jobs)


DATE = """#!/bin/bash
[ -n "$SLURM_STEP_ID" ] && [ -z "$SLURM_RESTART_COUNT" ] && [ "$SLURM_PROCID" = 1 ] &&
    set -- --date="100 seconds" "$@"
exec /bin/date "$@"
"""


@pytest.fixture(scope="module")
def unfit(slurm: MiniCluster, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finds one node's clock ahead at its first start, one's scratch broken at the next.

    No difference between clocks is allowed; that programs take seconds to start is none. Bandwidth
    is measured too. Under way while another test waits.
    """
    folder = tmp_path_factory.mktemp("unfit")
    scratch = folder / "scratch"
    scratch.mkdir()
    (scratch / "1-0").write_text("not a folder")
    (folder / "date").write_text(DATE)
    (folder / "date").chmod(0o755)
    extra = f"scratch: {scratch}/$SLURM_RESTART_COUNT-$SLURM_PROCID\n"
    extra += f"setup: ['PATH={folder}:$PATH']\n"
    profile = write_profile(folder, extra=extra)
    strict = "health: {min_allreduce_gb_per_second: 0.0001, max_clock_skew_seconds: 0, "
    profile.write_text(profile.read_text().replace("health: {", strict))
    submit_run(write_run(folder, dataset, steps=3), profile, "slurm.nodes=2")
    return folder / "run"


@pytest.mark.usefixtures("left_alone", "unfit")
def test_what_ends_the_restarts(slurm: MiniCluster, dataset: Path, tmp_path: Path) -> None:
    jobs, runs = {}, {name: tmp_path / name / "run" for name in STUBS}
    for name, stub in STUBS.items():
        cap = 2 if name == "saves" else 10
        jobs[name] = submit_stub(tmp_path / name, dataset, stub, f"slurm.max_restarts={cap}")
    slurm.wait_for_state(jobs["done"], "COMPLETED")
    slurm.run("scontrol", "requeue", jobs["done"])  # somebody does not know that it is done
    done = runs["done"]
    wait_for(slurm, done, lambda: len(events(done, "finished")) == 2, "the end, again")
    for name, job in jobs.items():
        slurm.wait_for_state(job, "COMPLETED" if name == "done" else "FAILED")
    restarts = {name: int(slurm.job(job)["Restarts"]) for name, job in jobs.items()}
    assert restarts == {"never_saves": 3, "saves": 2, "done": 1, "cancelled": 0, "bad_input": 0}
    assert len(events(done, "training")) == 1, "a finished run was trained again"
    reasons = {name: chain_status(run)[0].detail for name, run in runs.items()}
    assert "two restarts in a row made no progress beyond step 0" in reasons["never_saves"]
    assert "restart 2, the last of slurm.max_restarts" in reasons["saves"]
    assert "exit code 64: error: the data is gone" in reasons["bad_input"]


def test_unfit_nodes_are_excluded(unfit: Path, slurm: MiniCluster) -> None:
    wait_for_requeues(slurm, unfit, 2)
    details = [event.detail for event in events(unfit, "requeued")]
    scratch = re.escape(str(unfit.parent / "scratch" / "1-0"))
    for detail, reason in zip(
        details,
        (
            r"the clock is \+(99|100) s off that of the first node",
            f"{scratch} cannot be written to",
        ),
        strict=True,
    ):
        assert re.match(rf"unfit: (node\d) \(\1: {reason}", detail), detail
    bad = [detail.split()[1] for detail in details]
    job = events(unfit, "requeued")[0].job
    wait_for_end(slurm, unfit, job)
    record = slurm.job(job)
    assert record["ExcNodeList"] == ",".join(bad)
    assert record["Restarts"] == "2"
    used = slurm.run("scontrol", "show", "hostnames", record["NodeList"]).split()
    assert len({*used, *bad}) == 4


def test_a_controller_that_is_down_for_a_while(left_alone: LeftAlone, slurm: MiniCluster) -> None:
    """What was to come back does; of an ordinary error no node is blamed."""
    saved, failed = left_alone.saved, left_alone.failed
    slurm.wait_for_state(left_alone.jobs[saved], "COMPLETED")
    assert slurm.job(left_alone.jobs[saved])["Restarts"] == "1", explain(saved)
    record = slurm.wait_for_state(left_alone.jobs[failed], "FAILED")
    assert (record["Restarts"], record["ExcNodeList"]) == ("0", "(null)"), explain(failed)
    assert events(failed, "failed")[0].detail.startswith("exit code 1: ValueError: no good (node")


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
    """During training on two nodes, during a save, while requeued."""
    names = ("training", "saving", "requeued")
    jobs, runs = {}, {name: tmp_path / name / "run" for name in names}
    for name in names:
        config = write_run(tmp_path / name, dataset, steps=100_000, save_every=3)
        profile = write_profile(tmp_path / name)
        settings = ["slurm.nodes=2"] if name == "training" else []
        settings += ["model.hidden_size=768", "model.num_layers=4"] if name == "saving" else []
        jobs[name] = job_of(submit_run(config, profile, *settings))
    wait_for_step(cluster, runs["requeued"], 2)
    cluster.run("scontrol", "requeue", jobs["requeued"])
    cluster.wait_for_state(jobs["requeued"], "PENDING", timeout=60)
    cluster.run("scancel", jobs["requeued"])
    wait_for_step(cluster, runs["training"], 2)
    cluster.run("scancel", jobs["training"])
    checkpoints = runs["saving"] / "checkpoints"
    wait_for(cluster, runs["saving"], lambda: list(checkpoints.glob("step_*.tmp")), "a save")
    cluster.run("scancel", jobs["saving"])
    for job in jobs.values():
        cluster.wait_for_state(job, "CANCELLED", timeout=60)
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", 60)
    reached = {name: newest_step(run) for name, run in runs.items()}
    time.sleep(STABLE_SECONDS)
    for name, job in jobs.items():
        assert cluster.job(job)["JobState"] == "CANCELLED", name
        assert newest_step(runs[name]) == reached[name], name
        assert len(events(runs[name], "training")) == 1, name
        assert events(runs[name], "requeued") == [], name
