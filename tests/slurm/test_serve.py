"""A bundle served by a job: where it is, what it writes, how it ends and comes back."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.generate import Bundle, Request, generate, load_bundle
from esolm.pipeline.slurm.chain import cancel_chain
from esolm.pipeline.slurm.status import StageStatus, chain_status
from esolm.pipeline.slurm.submit import prepare
from tests.pipeline.generate.test_generate_command import make_bundle
from tests.slurm.cluster import MiniCluster
from tests.slurm.runs import events, explain, job_of, submit_run, write_profile, write_run
from tests.slurm.victims import server

__all__ = ["make_bundle"]

pytestmark = [pytest.mark.slurm, pytest.mark.check, pytest.mark.timeout(900)]
KEY = "a-secret-of-the-test"
LONG: dict[str, Any] = {"max_tokens": 1500, "alpha_0": 0.0, "ignore_eos": True, "prompt": "x"}


@pytest.fixture
def run(tmp_path: Path, dataset: Path, make_bundle: Callable[..., Path]) -> Iterator[Path]:
    """A run directory that holds a bundle."""
    write_run(tmp_path, dataset, steps=10)
    folder = tmp_path / "run"
    folder.mkdir()
    make_bundle(seq_len=4096).rename(folder / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESOLM_API_KEY", KEY)
        yield folder


def submit_server(run: Path, *overrides: str, extra: str = "") -> str:
    profile = write_profile(run.parent, extra=extra)
    chain = submit_run(run.parent / "run.yaml", profile, *overrides, stages=("serve",))
    return job_of(chain, "serve")


def wait_for_address(cluster: MiniCluster, run: Path, starts: int = 1) -> httpx.Client:
    """A client of the server, once it takes requests for the given time."""
    cluster.wait_until(
        lambda: len(events(run, "serving", "serve")) == starts, f"a server\n{told(run)}", 300
    )
    address = (run / "slurm" / "address").read_text().strip()
    assert events(run, "serving", "serve")[-1].detail.startswith(address)
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.Client(base_url=address, headers=headers, timeout=120)


def told(run: Path) -> str:
    return explain(run, "serve")


def status(run: Path) -> StageStatus:
    return chain_status(run)[-1]


def offline(bundle: Bundle, prompt: str, new: int, seed: int) -> str:
    request = Request(prompt=prompt, max_new_tokens=new, alpha_0=0.5, num_steps=4, seed=seed)
    return generate(bundle, request).texts[0].removeprefix(prompt)


@pytest.fixture
def patient(cluster: MiniCluster) -> Iterator[MiniCluster]:
    """A cluster that lets a server drain even where much else runs."""
    cluster.set_kill_wait(120)
    yield cluster
    cluster.empty()
    cluster.set_kill_wait(5)


def test_found_used_and_drained(patient: MiniCluster, run: Path) -> None:
    """Under two replicas; `scancel` is what `esolm cancel` uses."""
    cluster = patient
    job = submit_server(run, "serve.replicas=2", "serve.host=0.0.0.0")
    with wait_for_address(cluster, run) as client:
        assert client.get("/ready").json() == {"status": "ready", "replicas": 2}
        assert status(run).state == "RUNNING"
        assert status(run).detail == f"serving: {client.base_url}".rstrip("/")
        assert httpx.get(client.base_url.join("/v1/models")).status_code == 401
        assert client.get("/v1/models").json()["data"][0]["id"] == "run"
        body = {"prompt": "def f(", "max_tokens": 20, "seed": 4, "alpha_0": 0.5, "steps": 4}
        text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert text == offline(load_bundle(run / "bundle"), "def f(", 20, 4)
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: answers.append(client.post("/v1/completions", json=LONG))
        )
        thread.start()
        cluster.wait_until(lambda: "running" in running(client), "a text", 30)
        cluster.run("scancel", job)
        thread.join()
        assert answers[0].status_code == 200, told(run)
        assert answers[0].json()["usage"]["completion_tokens"] == LONG["max_tokens"]
    cluster.wait_for_state(job, "CANCELLED")
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", 150)
    assert status(run).state == "CANCELLED"
    assert status(run).detail == "finished: exit code 0", told(run)
    assert not (run / "slurm" / "address").exists()
    for path in (run / "slurm").rglob("*"):
        assert not path.is_file() or KEY not in path.read_text(errors="replace"), path


def test_a_chain_that_ends_in_a_server(
    cluster: MiniCluster, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts once the bundle is exported, and `esolm cancel` ends it."""
    monkeypatch.setenv("ESOLM_API_KEY", KEY)
    config, run = write_run(tmp_path, dataset, steps=5), tmp_path / "run"
    chain = submit_run(config, write_profile(tmp_path), stages=("train", "export", "serve"))
    assert [job.stage for job in chain.jobs] == ["train", "export", "serve"]
    assert chain.jobs[2].after == chain.jobs[1].job_id
    with wait_for_address(cluster, run) as client:
        assert [stage.state for stage in chain_status(run)] == ["COMPLETED", "COMPLETED", "RUNNING"]
        body = {"prompt": "a", "max_tokens": 8, "seed": 2, "alpha_0": 0.5, "steps": 4}
        text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert text == offline(load_bundle(run / "bundle"), "a", 8, 2)
    assert [job.stage for job, _ in cancel_chain(run)] == ["serve"]
    cluster.wait_until(lambda: not cluster.run("squeue", "-h"), "an empty queue", 60)
    assert status(run).state == "CANCELLED"


def running(client: httpx.Client) -> str:
    """`running` while a text is being written."""
    lines = client.get("/metrics").text.splitlines()
    figures = [line for line in lines if line.startswith("vllm:num_requests_running{")]
    return "running" if any(float(line.split()[-1]) for line in figures) else ""


def test_killed_told_to_end_and_out_of_time(cluster: MiniCluster, run: Path) -> None:
    """What dies comes back; what is told to end by TERM alone has finished."""
    job = submit_server(run)
    with wait_for_address(cluster, run) as client:
        assert client.base_url.host == "127.0.0.1"
        assert status(run).detail.split(" on ")[1].startswith("node")
        server(cluster, job).kill()
    with wait_for_address(cluster, run, starts=2) as client:
        assert client.post("/v1/completions", json={"prompt": "x"}).status_code == 200
        [requeued] = events(run, "requeued", "serve")
        assert "exit code 137" in requeued.detail
        cluster.run("scancel", "--signal=TERM", job)
    cluster.wait_for_state(job, "COMPLETED", timeout=60)
    assert status(run).detail == "finished: exit code 0"
    job = submit_server(run, "serve.time='0-00:01'")
    with wait_for_address(cluster, run, starts=3):
        cluster.wait_for_state(job, "COMPLETED", timeout=180)
    assert len(events(run, "draining", "serve")) == 1


@pytest.mark.parametrize("user_signal", [False, True])
def test_preempted(cluster: MiniCluster, run: Path, user_signal: bool) -> None:
    """It drains, makes room, and is served again."""
    cluster.set_user_signal(user_signal)
    try:
        submit_server(run, extra="exclusive: true\n")
        with wait_for_address(cluster, run):
            wrap = ("--partition=high", "--nodes=4", "--exclusive", "--wrap=sleep 1")
            cluster.run("sbatch", "--output=/dev/null", *wrap)
            cluster.wait_until(lambda: events(run, "requeued", "serve"), told(run), 120)
        assert [event.detail for event in events(run, "requeued", "serve")] == ["preempted"]
        with wait_for_address(cluster, run, starts=2) as client:
            assert client.get("/ready").status_code == 200
    finally:
        cluster.set_user_signal(False)


def test_what_a_submit_refuses(
    cluster: MiniCluster, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, before anything is queued."""
    (run / "bundle" / "export.json").unlink()
    profile = write_profile(
        run.parent, extra="gpus_per_node: 1\nenvironment: {ESOLM_API_KEY: open}\n"
    )
    config = run.parent / "run.yaml"
    settings = ["serve.replicas=2", "serve.rows=0", "serve.time=60", "serve.port=70000"]
    with pytest.raises(ConfigError) as refused:
        prepare(config, settings, str(profile), ["serve"])
    for problem in (
        "serve.rows is 0", "serve.time is '60'", "serve.port is 70000",
        "serve.replicas 2 is more than gpus_per_node 1", "is no bundle yet; add stage export",
        "would stand in every script",
    ):  # fmt: skip
        assert problem in str(refused.value)
    (run / "bundle" / "export.json").write_text("{}")
    monkeypatch.delenv("ESOLM_API_KEY")
    found = prepare(config, ["serve.host=0.0.0.0"], str(write_profile(run.parent)), ["serve"])
    assert any("without ESOLM_API_KEY" in note for note in found.notes)
