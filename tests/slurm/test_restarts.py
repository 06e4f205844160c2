"""Training that is interrupted: preemption, time limit, lost nodes. Nothing here is mocked."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from esolm.pipeline.checkpoint.commit import newest_valid
from esolm.pipeline.slurm.chain import Chain
from tests.e2e.runs import finish, start, states
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import (
    answers,
    events,
    job_of,
    logged_steps,
    newest_step,
    pauses,
    submit_run,
    wait_for,
    wait_for_end,
    wait_for_requeues,
    wait_for_step,
    write_profile,
    write_run,
)

pytestmark = [pytest.mark.slurm, pytest.mark.check, pytest.mark.timeout(1200)]

# How far a run gets before it is disturbed for the last time is chance: the end is put behind that.
ENDLESS = 100_000
MORE = 50


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The same training in one process, without Slurm: layouts do not change what is learnt."""

    @cache
    def trained(steps: int) -> Path:
        config = write_run(tmp_path_factory.mktemp("undisturbed"), dataset, steps=steps)
        finish(start("train", str(config)), 0, timeout=600)
        return config.parent / "run"

    return trained


def put_end(chain: Chain) -> int:
    """Ends a run that waits to start again some steps after its newest; returns the last step.

    A multiple of so many that runs may share what they are compared with.
    """
    steps = (newest_step(Path(chain.run)) // MORE + 1) * MORE + MORE // 2
    config = Path(chain.submission) / "config.yaml"
    before = f"  steps: {ENDLESS}\n"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, f"  steps: {steps}\n"))
    return steps


def largest_difference(one: Path, other: Path) -> float:
    """Over weights, moments and EMA of the newest checkpoints."""
    a, b = states(one), states(other)
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_preempted_and_resumed_is_undisturbed(
    cluster: MiniCluster,
    dataset: Path,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    figures: dict[str, str],
) -> None:
    """Under both signal conventions, on two nodes each; the second starts as the first resumes."""
    runs = {name: tmp_path / name / "run" for name in ("default", "user_signal")}
    cluster.set_user_signal(False)
    ends = {"default": _preempted(cluster, dataset, runs["default"], ["node1", "node2"])}
    cluster.set_user_signal(True)
    ends["user_signal"] = _preempted(cluster, dataset, runs["user_signal"], ["node3", "node4"])
    jobs = {name: job for name, (job, _) in ends.items()}
    for name, run in runs.items():
        steps = ends[name][1]
        wait_for_end(cluster, run, jobs[name])
        assert cluster.job(jobs[name])["Restarts"] == "1"
        assert logged_steps(run) == list(range(1, steps + 1)), "steps were repeated or lost"
        assert largest_difference(run, undisturbed(steps)) < 1e-5
        log = (run / "slurm" / "logs" / f"train-{jobs[name]}.log").read_text()
        assert log.count("== training: ") == 2, "the log of the second start replaced the first's"
        figures[f"preemption ({name}), from the last step to the next"] = pauses(run, 1)
    assert not events(runs["default"], "asked"), "the ranks should have heard of it directly"
    assert events(runs["user_signal"], "asked"), "the batch script should have heard of it"


def _preempted(cluster: MiniCluster, dataset: Path, run: Path, nodes: list[str]) -> tuple[str, int]:
    """A training job that more urgent work has just driven off its nodes, and its last step."""
    config = write_run(run.parent, dataset, steps=ENDLESS)
    others = ",".join(sorted({"node1", "node2", "node3", "node4"} - set(nodes)))
    profile = write_profile(run.parent, extra=f"exclude: {others}\n")
    chain = submit_run(config, profile, "slurm.nodes=2")
    wait_for_step(cluster, run, 5)
    urgent = ("sbatch", "--partition=high", f"--nodelist={','.join(nodes)}", "--exclusive")
    cluster.run(*urgent, "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    wait_for_requeues(cluster, run)
    return job_of(chain), put_end(chain)


@pytest.fixture(scope="module")
def time_limited(
    slurm: MiniCluster, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    """A run of one-minute jobs on the first two nodes, more than it would ever get through.

    Under way while another test waits for Slurm to notice that a node is dead.
    """
    slurm.empty()
    folder = tmp_path_factory.mktemp("time_limited")
    config = write_run(folder, dataset, steps=ENDLESS)
    profile = write_profile(folder, extra="exclude: node3,node4\n")
    profile.write_text(profile.read_text().replace("warn_seconds: 10", "warn_seconds: 15"))
    return submit_run(config, profile, "slurm.time=0-00:01")


@pytest.mark.usefixtures("time_limited")
def test_nodes_that_die_and_come_back(
    slurm: MiniCluster,
    dataset: Path,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    figures: dict[str, str],
) -> None:
    """Two nodes, the first one dies, one node, two nodes, the other one dies, one node.

    Saved synchronously: the steps trained while a copy is being written would be lost as well.
    """
    save_every = 10
    config = write_run(tmp_path, dataset, steps=ENDLESS, save_every=save_every, asynchronous=False)
    run = tmp_path / "run"
    profile = write_profile(tmp_path, extra="exclude: node1,node2\n")
    profile.write_text(profile.read_text().replace("exit_seconds: 60", "exit_seconds: 5"))
    chain = submit_run(config, profile, "slurm.nodes=1-2")
    job = job_of(chain)
    wait_for_step(slurm, run, save_every + 2)
    lost = {"first node": _repeated(slurm, run, _kill(slurm, run, "node3"))}
    assert not events(run, "requeued"), "the batch script died with its node"
    assert slurm.job(job)["NodeList"] == "node4"
    slurm.start_node("node3")
    slurm.wait_until(lambda: _is_idle(slurm, "node3"), "node3 back", 60)
    slurm.run("scontrol", "requeue", job)
    restarted_at = newest_step(run)
    wait_for(slurm, run, lambda: slurm.job(job)["NodeList"] == "node[3-4]", "both nodes")
    wait_for_step(slurm, run, restarted_at + save_every + 2)
    slurm.set_node_timeout(300)  # as most clusters have it: Slurm would see it minutes later
    killed = _kill(slurm, run, "node4")
    wait_for_requeues(slurm, run)
    assert events(run, "requeued")[0].detail == "node4 no longer answers"
    steps = put_end(chain)
    slurm.start_node("node4")  # until it is back or given up, the job stays pending
    lost["other node"] = _repeated(slurm, run, killed)
    assert slurm.job(job)["ExcNodeList"] == "node[1-2],node4"
    wait_for_end(slurm, run, job)
    slurm.set_node_timeout(20)
    for name, repeated in lost.items():
        figures[f"{name} killed, steps repeated (saved every {save_every})"] = str(repeated)
        assert repeated <= save_every
    figures["nodes killed, from the last step to the next"] = pauses(run, 2)
    assert sorted(set(logged_steps(run))) == list(range(1, steps + 1))
    used = [event.detail.split(" on ")[1] for event in events(run, "training")]
    assert [words.split(" of ")[0] for words in used] == ["2", "1", "2", "1"]
    assert largest_difference(run, undisturbed(steps)) < 1e-5


def test_a_time_limit_shorter_than_the_training(
    time_limited: Chain, slurm: MiniCluster, figures: dict[str, str]
) -> None:
    run, job = Path(time_limited.run), job_of(time_limited)
    enough = max(2, len(events(run, "requeued")) + 1)
    wait_for_requeues(slurm, run, enough)
    steps = put_end(time_limited)
    wait_for_end(slurm, run, job)
    restarts = int(slurm.job(job)["Restarts"])
    figures["one-minute time limit, requeues to completion"] = str(restarts)
    figures["one-minute time limit, from the last step to the next"] = pauses(run, restarts)
    figures["one-minute time limit, from the signal to the requeue"] = answers(run)
    assert len(events(run, "requeued")) == restarts >= enough
    assert logged_steps(run) == list(range(1, steps + 1)), "steps were repeated or lost"


@dataclass(frozen=True)
class Killed:
    """What a run had at the moment when a node of it was killed."""

    lines: int
    reached: int
    committed: int


def _kill(cluster: MiniCluster, run: Path, node: str) -> Killed:
    cluster.kill_node(node)
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    return Killed(len(logged_steps(run)), newest_step(run), newest[1].step)


def _repeated(cluster: MiniCluster, run: Path, killed: Killed) -> int:
    """Waits for the first new step, returns how many steps were repeated on the way to it."""
    wait_for_step(cluster, run, killed.reached + 1)
    resumed = logged_steps(run)[killed.lines]
    assert resumed > killed.committed, "a committed step was lost"
    return killed.reached - resumed + 1


def _is_idle(cluster: MiniCluster, node: str) -> bool:
    return cluster.run("sinfo", "-h", "-n", node, "-p", "low", "-o", "%T").strip() == "idle"
