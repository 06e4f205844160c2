"""`esolm serve --replicas`: two servers under one address, one of which is killed under load."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from esolm.pipeline.generate import load_bundle
from tests.pipeline.serve.conftest import SEQ_LEN, Server, serving
from tests.processes import run_python

pytestmark = [pytest.mark.check, pytest.mark.timeout(600)]
KEY = "secret"
LONG: dict[str, Any] = {"max_tokens": 1000, "alpha_0": 0.0, "ignore_eos": True}


@dataclass
class TwoReplicas:
    """A server of two replicas. bundle: what it serves, also here."""

    server: Server
    client: httpx.Client

    @cached_property
    def bundle(self) -> Any:
        return load_bundle(self.server.bundle)

    def offline(self, seed: int, rows: int = 1) -> str:
        """What `generate` writes for LONG behind `x`, as the first of so many rows."""
        prompt = list(self.bundle.tokenizer.encode("x"))
        written = self.bundle.model.generate(
            torch.tensor([prompt]), seed=seed, num_samples=rows,
            max_new_tokens=LONG["max_tokens"], alpha_0=LONG["alpha_0"], eos_token_id=[],
        )[0].tolist()  # fmt: skip
        front = self.bundle.tokenizer.decode(prompt)
        return str(self.bundle.tokenizer.decode(written)[len(front) :])

    def texts(self, count: int) -> dict[int, str]:
        """Seeds and what is to be written for them.

        Products of one row are rounded otherwise than those of several, which decides about one in
        ten thousand tokens of this random network. Seeds with such a token are left out.
        """
        found = {}
        for seed in range(5 * count):
            text = self.offline(seed)
            if text == self.offline(seed, rows=2):
                found[seed] = text
            if len(found) == count:
                return found
        raise AssertionError("hardly any text is the same twice")

    def running(self) -> Counter[str]:
        """Texts in every replica that answers."""
        lines = self.client.get("/metrics").text.splitlines()
        found: Counter[str] = Counter()
        for line in lines:
            if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{")):
                found[line.split('replica="')[1].split('"')[0]] += int(float(line.split()[-1]))
        return found

    def processes(self, kind: str = "") -> list[psutil.Process]:
        """The server's, by the beginning of their title."""
        front = psutil.Process(self.server.process.pid)
        found = [front, *front.children(recursive=True)]
        return [each for each in found if "".join(each.cmdline()[:1]).startswith(kind)]

    def wait_for_two(self) -> None:
        def both() -> bool:
            return self.client.get("/ready").json().get("replicas") == 2

        self.server.wait_for(both, 180)


@pytest.fixture(scope="module")
def fleet(
    make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoReplicas]:
    bundle, folder = make_bundle(seq_len=SEQ_LEN), tmp_path_factory.mktemp("fleet")
    # No process may take code from where the server was started.
    (folder / "safetensors.py").write_text("raise RuntimeError('of the working directory')")
    with (
        serving(bundle, folder, "--replicas", "2", "--rows", "8", key=KEY) as server,
        httpx.Client(
            base_url=server.url, timeout=120, headers={"Authorization": f"Bearer {KEY}"}
        ) as client,
    ):
        yield TwoReplicas(server, client)


class Stream(threading.Thread):
    """A text as it comes. text: so far. error: its last event, if that was one."""

    def __init__(self, fleet: TwoReplicas, seed: int) -> None:
        super().__init__(daemon=True)
        self.seed, self.text = seed, ""
        self.error: dict[str, Any] | None = None
        self.is_done, self.has_begun = False, threading.Event()
        self._fleet = fleet

    def run(self) -> None:
        body = {**LONG, "prompt": "x", "seed": self.seed, "stream": True}
        with self._fleet.client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in filter(None, answer.iter_lines()):
                event = line.removeprefix("data: ")
                if event == "[DONE]":
                    self.is_done = True
                elif "error" in (chunk := json.loads(event)):
                    self.error = chunk["error"]
                else:
                    self.text += chunk["choices"][0]["text"]
                self.has_begun.set()


def test_a_replica_is_killed_under_load(fleet: TwoReplicas) -> None:
    texts = fleet.texts(8)
    seeds = list(texts)
    streams = [Stream(fleet, seed) for seed in seeds[:4]]
    for stream in streams:
        stream.start()
        assert stream.has_begun.wait(60)
    begun = fleet.running()
    assert begun.total() == 4
    answers: dict[int, httpx.Response] = {}

    def whole(seed: int) -> None:
        body = {**LONG, "prompt": "x", "seed": seed}
        answers[seed] = fleet.client.post("/v1/completions", json=body)

    others = [threading.Thread(target=whole, args=(seed,)) for seed in seeds[4:]]
    for thread in others:
        thread.start()
    fleet.server.wait_for(lambda: fleet.running().total() == 8)
    fleet.processes("ray::ServeReplica")[0].kill()
    for thread in [*streams, *others]:
        thread.join()
    fleet.wait_for_two()
    [lost] = begun.keys() - fleet.running().keys()
    assert begun[lost] == 2
    assert [stream.error is not None for stream in streams].count(True) == 2
    for stream in streams:
        assert stream.is_done
        if stream.error is None:
            assert stream.text == texts[stream.seed]
        else:
            assert texts[stream.seed].startswith(stream.text)
            assert stream.error["code"] == 503
            assert stream.error["type"] == "overloaded_error"
            assert "has ended" in stream.error["message"]
    for seed in seeds[4:]:
        assert answers[seed].status_code == 200, answers[seed].text
        assert answers[seed].json()["choices"][0]["text"] == texts[seed]
    assert len(fleet.processes("ray::ServeReplica")) == 2


def test_all_replicas_are_killed(fleet: TwoReplicas) -> None:
    """What has said nothing yet waits for a new one, or hears that there is none."""
    for replica in fleet.processes("ray::ServeReplica"):
        replica.kill()
    answer = fleet.client.post("/v1/completions", json={"prompt": "x", "seed": 1, "max_tokens": 4})
    assert answer.status_code in (200, 503)
    if answer.status_code == 503:
        assert answer.json()["error"]["message"] == "no replica is up"
        assert answer.headers["Retry-After"] == "10"
    fleet.wait_for_two()
    again = fleet.client.post("/v1/completions", json={"prompt": "x", "seed": 1, "max_tokens": 4})
    assert again.status_code == 200


def test_errors_and_the_key(fleet: TwoReplicas) -> None:
    """As of one server."""
    url = fleet.server.url
    assert httpx.get(f"{url}/v1/models").json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(url).text.startswith("<!doctype html>")
    wrong = fleet.client.post("/v1/completions", json={"sed": 1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "sed")
    absent = fleet.client.get("/nowhere")
    assert (absent.status_code, absent.json()["error"]["type"]) == (404, "not_found_error")
    large = fleet.client.post("/v1/completions", content=b" " * (5 << 20))
    assert (large.status_code, large.json()["error"]["code"]) == (413, 413)
    tokens = fleet.client.post("/tokenize", json={"prompt": "def f("}).json()["tokens"]
    assert fleet.client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "def f("


def test_a_client_that_leaves_frees_its_row(fleet: TwoReplicas) -> None:
    body = {**LONG, "max_tokens": 4000, "prompt": "x"}
    with ExitStack() as stack:
        answer = stack.enter_context(
            fleet.client.stream("POST", "/v1/completions", json={**body, "stream": True})
        )
        lines = stack.enter_context(closing(answer.iter_lines()))
        next(lines)
        assert fleet.running().total() == 1
    fleet.server.wait_for(lambda: fleet.running().total() == 0, 10)
    with pytest.raises(httpx.ReadTimeout):
        fleet.client.post("/v1/completions", json=body, timeout=0.5)
    fleet.server.wait_for(lambda: fleet.running().total() == 0, 10)


def leave_at_once(fleet: TwoReplicas, **body: Any) -> None:
    """Closes the connection as soon as anything has come."""
    content = json.dumps({"prompt": "x", "alpha_0": 0.0, **body})
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(content)}", "", content]
    address = (fleet.client.base_url.host, fleet.client.base_url.port)
    with socket.create_connection(address) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_nobody_else_reaches_it(fleet: TwoReplicas) -> None:
    """Ray listens on loopback; but for the replicas' own port, which asks for a token."""
    import grpc

    outer = set()
    for process in fleet.processes():
        for connection in process.net_connections("tcp"):
            address = connection.laddr
            if connection.status == "LISTEN" and not address.ip.endswith("127.0.0.1"):
                assert process.cmdline()[0].startswith("ray::ServeReplica"), process.cmdline()
                outer.add(address.port)
    assert len(outer) == 2
    for port in outer:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=20)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_drain(fleet: TwoReplicas) -> None:
    """SIGTERM to every process, as Slurm and systemd send it. The last test: it ends the fleet."""
    for _ in range(100):  # who leaves between two parts of an answer must not count as being there
        leave_at_once(fleet, max_tokens=4)
        leave_at_once(fleet, max_tokens=200, stream=True)
    [(seed, text)] = fleet.texts(1).items()
    stream = Stream(fleet, seed)
    stream.start()
    assert stream.has_begun.wait(60)
    processes = fleet.processes()
    for process in processes:
        process.terminate()
    fleet.server.wait_for(lambda: fleet.client.get("/ready").status_code == 503, 5)
    refused = fleet.client.post("/v1/completions", json={"prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "overloaded_error")
    stream.join()
    assert stream.text == text
    assert fleet.server.process.wait(60) == 0
    assert psutil.wait_procs(processes, 30)[1] == []


def test_what_cannot_be_served(tmp_path: Path) -> None:
    none = run_python("-m", "esolm", "serve", str(tmp_path), "--replicas", "2")
    assert none.returncode == 64
    assert "is no bundle" in none.stderr
