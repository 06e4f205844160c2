"""A real server over a small random bundle, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.pipeline.generate.test_generate_command import make_bundle
from tests.processes import environment

__all__ = ["make_bundle"]

SEQ_LEN = 4096


@dataclass
class Server:
    """url: its address. bundle: what it serves."""

    url: str
    bundle: Path
    process: subprocess.Popen[str]
    log: Path

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120)

    def completion(self, **body: object) -> httpx.Response:
        return self.post("/v1/completions", **body)

    def figure(self, name: str) -> float:
        """One of the metrics; the sum over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def wait_until_idle(self) -> None:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        self.wait_for(lambda: not any(map(self.figure, names)))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(bundle: Path, folder: Path, port: int, *options: str, key: str | None = None) -> Server:
    """`esolm serve`, before it answers."""
    command = [sys.executable, "-W", "ignore", "-m", "esolm", "serve", str(bundle)]
    variables = environment() | ({} if key is None else {"ESOLM_API_KEY": key})
    log = folder / f"serve-{port}.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            stdout=output, stderr=subprocess.STDOUT, text=True, env=variables, cwd=folder,
        )  # fmt: skip
    return Server(f"http://127.0.0.1:{port}", bundle, process, log)


@contextmanager
def serving(bundle: Path, folder: Path, *options: str, key: str | None = None) -> Iterator[Server]:
    """`esolm serve` from its start to SIGTERM."""
    server = start(bundle, folder, free_port(), *options, key=key)
    process = server.process
    try:
        server.wait_for(lambda: answers(server), 240)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            raise


@contextmanager
def serving_here(service: Any) -> Iterator[httpx.Client]:
    """A service behind an address of this process, so that a test can reach into it."""
    import uvicorn

    from esolm.pipeline.serve.app import make_app

    config = uvicorn.Config(make_app(service, None), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        service.engine.close()


def answers(server: Server) -> bool:
    """Whether it takes requests."""
    assert server.process.poll() is None, server.log.read_text()[-3000:]
    try:
        return httpx.get(f"{server.url}/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def server(
    make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Four rows, a queue of six."""
    bundle = make_bundle(seq_len=SEQ_LEN)
    options = ("--rows", "4", "--queue", "6")
    with serving(bundle, tmp_path_factory.mktemp("serve"), *options) as found:
        yield found
