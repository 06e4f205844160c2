"""Training that is interrupted: preemption, time limit, lost nodes. Nothing here is mocked."""

import json
import time
from pathlib import Path
from statistics import median

import pytest

from pipeline.checkpoint.commit import newest_valid
from tests.e2e.runs import finish, start, states
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import (
    events,
    explain,
    job_of,
    logged_steps,
    newest_step,
    submit_run,
    wait_for_end,
    wait_for_step,
    write_profile,
    write_run,
)

pytestmark = pytest.mark.slurm

STEPS = 200


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training in the same layout, without Slurm."""
    config = write_run(tmp_path_factory.mktemp("undisturbed"), dataset, steps=STEPS)
    finish(start("train", str(config), "--ranks", "2"), 0)
    return config.parent / "run"


def largest_difference(one: Path, other: Path) -> float:
    """Over weights, moments and EMA of the newest checkpoints."""
    a, b = states(one), states(other)
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("convention", ["default", "user_signal"])
def test_preempted_and_resumed_is_undisturbed(
    convention: str,
    cluster: MiniCluster,
    dataset: Path,
    undisturbed: Path,
    tmp_path: Path,
    figures: dict[str, str],
) -> None:
    cluster.set_user_signal(convention == "user_signal")
    config, run = write_run(tmp_path, dataset, steps=STEPS), tmp_path / "run"
    job = job_of(submit_run(config, write_profile(tmp_path), "slurm.nodes=2"))
    wait_for_step(cluster, run, 5)
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/sh\nsleep 1\n")
    urgent = ("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null")
    cluster.run(*urgent, str(script))
    cluster.wait_until(lambda: events(run, "requeued"), f"a requeue of {job}\n{explain(run)}", 120)
    stopped_at, requeued = newest_step(run), time.monotonic()
    assert stopped_at < STEPS, "it was over before the preemption: more steps are needed"
    wait_for_step(cluster, run, stopped_at + 1)
    figures[f"preemption ({convention}), requeue to first new step"] = (
        f"{time.monotonic() - requeued:.0f} s"
    )
    wait_for_end(cluster, run, job)
    assert cluster.job(job)["Restarts"] == "1"
    assert logged_steps(run) == list(range(1, STEPS + 1)), "steps were repeated or lost"
    assert largest_difference(run, undisturbed) < 1e-5


@pytest.fixture(scope="module")
def time_limited(
    slurm: MiniCluster,
    dataset: Path,
    undisturbed: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str, int]:
    """A run of several one-minute jobs on the first two nodes: its folder, job and steps.

    Under way while another test waits for Slurm to notice that a node is dead.
    """
    slurm.empty()
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    seconds = median(line["step_seconds"] for line in lines if "step_seconds" in line)
    # Slurm looks for limits every 30 s, so a job has 15 to 45 s, and a start takes some of them.
    steps = round(max(STEPS, min(80 / seconds, 5000)))
    folder = tmp_path_factory.mktemp("time_limited")
    config = write_run(folder, dataset, steps=steps)
    profile = write_profile(folder, extra="exclude: node3,node4\n")
    profile.write_text(profile.read_text().replace("warn_seconds: 10", "warn_seconds: 15"))
    chain = submit_run(config, profile, "slurm.nodes=2", "slurm.time=0-00:01")
    return folder / "run", job_of(chain), steps


@pytest.mark.usefixtures("time_limited")
def test_nodes_that_die_and_come_back(
    slurm: MiniCluster, dataset: Path, undisturbed: Path, tmp_path: Path, figures: dict[str, str]
) -> None:
    """Two nodes, the first one dies, one node, two nodes, the other one dies, one node."""
    save_every = 10
    config = write_run(tmp_path, dataset, steps=STEPS, save_every=save_every)
    run = tmp_path / "run"
    profile = write_profile(tmp_path, extra="exclude: node1,node2\n")
    job = job_of(submit_run(config, profile, "slurm.nodes=1-2"))
    wait_for_step(slurm, run, save_every + 2)
    lost = {"first node": _lose(slurm, run, job, "node3")}
    assert slurm.job(job)["NodeList"] == "node4"
    slurm.start_node("node3")
    slurm.wait_until(lambda: _is_idle(slurm, "node3"), "node3 back", 60)
    slurm.run("scontrol", "requeue", job)
    restarted_at = newest_step(run)
    slurm.wait_until(
        lambda: slurm.job(job)["NodeList"] == "node[3-4]", f"both nodes\n{explain(run)}", 120
    )
    wait_for_step(slurm, run, restarted_at + save_every + 2)
    lost["other node"] = _lose(slurm, run, job, "node4")
    wait_for_end(slurm, run, job)
    slurm.start_node("node4")
    slurm.wait_until(lambda: _is_idle(slurm, "node4"), "node4 back", 60)
    for name, repeated in lost.items():
        figures[f"{name} killed, steps repeated (saved every {save_every})"] = str(repeated)
        assert repeated <= save_every
    assert sorted(set(logged_steps(run))) == list(range(1, STEPS + 1))
    used = [event.detail.split(" on ")[1] for event in events(run, "training")]
    assert [words.split(" of ")[0] for words in used] == ["2", "1", "2", "1"]
    assert largest_difference(run, undisturbed) < 1e-5


def test_a_time_limit_shorter_than_the_training(
    time_limited: tuple[Path, str, int], slurm: MiniCluster, figures: dict[str, str]
) -> None:
    run, job, steps = time_limited
    slurm.wait_until(
        lambda: len(events(run, "requeued")) >= 2, f"two requeues\n{explain(run)}", 300
    )
    # The rest in one go: how much a job gets done before Slurm looks at its limit is chance.
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    wait_for_end(slurm, run, job)
    restarts = int(slurm.job(job)["Restarts"])
    figures["one-minute time limit, requeues to completion"] = str(restarts)
    assert restarts >= 2, "it was over too soon: more steps are needed"
    assert logged_steps(run) == list(range(1, steps + 1)), "steps were repeated or lost"
    assert len(events(run, "requeued")) == restarts, "not every restart was its own"


def _lose(cluster: MiniCluster, run: Path, job: str, node: str) -> int:
    """Kills a node of the job, waits for the first new step, returns the steps repeated."""
    restarts = int(cluster.job(job)["Restarts"])
    cluster.kill_node(node)
    reached, before = newest_step(run), len(logged_steps(run))
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    cluster.wait_until(
        lambda: int(cluster.job(job)["Restarts"]) > restarts, f"a requeue\n{explain(run)}", 180
    )
    wait_for_step(cluster, run, reached + 1)
    resumed = logged_steps(run)[before]
    assert resumed >= newest[1].step + 1, "a committed step was lost"
    return reached - resumed + 1


def _is_idle(cluster: MiniCluster, node: str) -> bool:
    return cluster.run("sinfo", "-h", "-n", node, "-p", "low", "-o", "%T").strip() == "idle"
