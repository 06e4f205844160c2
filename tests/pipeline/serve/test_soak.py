"""Many clients at once that stream, leave, stall and send nonsense; then all is as before."""

import json
import random
import socket
import threading
import time
from collections import Counter
from typing import Any

import httpx
import psutil
import pytest

from esolm.pipeline.generate import load_bundle
from tests.pipeline.serve.conftest import Server
from tests.pipeline.serve.offline import offline

CLIENTS, BODIES = 32, 120
# Seconds until memory has been of all the shapes it will be of: 50 MiB more in the first fifteen
# seconds after five, then 18, 14, 4, 9, 2.
WARM_UP = 15.0
NONSENSE: list[dict[str, Any]] = [{"prompt": 5}, {"top_p": 7}, {"n": -1}, {"what": 1}]
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01",  # the beginning of TLS
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\n{}",
]


def bodies() -> list[dict[str, Any]]:
    """Few enough that each can be written offline too."""
    draws = random.Random(0)
    return [
        {
            "prompt": f"x{draws.randrange(50)} = ", "max_tokens": draws.randrange(1, 60),
            "seed": draws.randrange(1000), "alpha_0": draws.choice([0.0, 0.4, 1.0]),
            "steps": draws.randrange(1, 9), "guesses": draws.choice([0, 3]),
        }
        for _ in range(BODIES)
    ]  # fmt: skip


class Client(threading.Thread):
    """finished: number of the body and the text that came back whole. did: how often what."""

    def __init__(self, server: Server, number: int, end: float) -> None:
        super().__init__(daemon=True)
        self.server, self.end = server, end
        self.random = random.Random(number)
        self.bodies = bodies()
        self.finished: list[tuple[int, str]] = []
        self.did: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        kinds = (self.read, self.read, self.leave, self.stall, self.nonsense, self.garbage)
        try:
            while time.monotonic() < self.end:
                self.random.choice(kinds)()
        except Exception as error:  # of whatever kind: the test tells it
            self.wrong.append(repr(error))

    def read(self) -> None:
        """At times slowly."""
        self.stream(most=None)

    def leave(self) -> None:
        self.stream(most=self.random.randrange(1, 6))

    def stall(self) -> None:
        """Does not read at all for a while, and goes."""
        self.stream(most=0)

    def stream(self, most: int | None) -> None:
        number, text = self.random.randrange(BODIES), ""
        body = {**self.bodies[number], "stream": True}
        url = f"{self.server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=120) as answer:
            if answer.status_code == 429:
                self.did["sent away"] += 1
                time.sleep(0.05)
                return
            if answer.status_code != 200:
                self.wrong.append(f"{answer.status_code} for {body}")
                return
            if most == 0:
                time.sleep(self.random.uniform(0.2, 1.5))
                self.did["stalled"] += 1
                return
            for line_number, line in enumerate(answer.iter_lines()):
                if line_number == most:
                    self.did["left"] += 1
                    return
                if self.random.random() < 0.02:
                    time.sleep(0.2)
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        if most is None:
            self.did["finished"] += 1
            self.finished.append((number, text))

    def nonsense(self) -> None:
        body = self.random.choice(NONSENSE)
        answer = self.server.completion(**body)
        self.did["nonsense"] += 1
        if answer.status_code != 400:
            self.wrong.append(f"{answer.status_code} for {body}")

    def garbage(self) -> None:
        """What is no request, or half of one."""
        port = int(self.server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(self.random.choice(GARBAGE))
        self.did["garbage"] += 1


def crowd(server: Server, seconds: float) -> list[Client]:
    end = time.monotonic() + seconds
    clients = [Client(server, number, end) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(seconds + 120)
        assert not client.is_alive(), "a client hangs"
    server.wait_until_idle()
    return clients


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(15.0, marks=pytest.mark.check), pytest.param(120.0, marks=pytest.mark.slow)],
)
def test_a_crowd_leaves_no_trace(server: Server, seconds: float) -> None:
    crowd(server, WARM_UP)
    process = psutil.Process(server.process.pid)
    before, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    clients = crowd(server, seconds)
    assert [client.wrong for client in clients if client.wrong] == []
    did = sum((client.did for client in clients), Counter())
    grown = process.memory_info().rss - before
    print(f"{seconds:g} s: {dict(did)}, memory grew by {grown / 2**20:.1f} MiB")
    assert min(did[kind] for kind in ("finished", "left", "stalled", "nonsense", "garbage")) > 0
    assert grown < 64 << 20
    assert process.num_threads() <= threads + 2
    server.wait_for(lambda: process.num_fds() <= files + 2)  # connections close a little later
    assert server.figure("vllm:kv_cache_usage_perc") == 0
    bundle = load_bundle(server.bundle)
    expected = [offline(bundle, **body) for body in bodies()]
    for number, text in [each for client in clients for each in client.finished]:
        assert text == expected[number], bodies()[number]
