"""Many clients at once that stream, leave, stall and send nonsense; then all is as before."""

import random
import threading
import time
from typing import Any

import httpx
import psutil
import pytest

from tests.pipeline.serve.conftest import Server

pytestmark = pytest.mark.check
CLIENTS, SECONDS = 32, 15.0


class Client(threading.Thread):
    """finished: requests and the texts that came back whole. wrong: what should not happen."""

    def __init__(self, server: Server, number: int, end: float) -> None:
        super().__init__(daemon=True)
        self.server, self.end = server, end
        self.random = random.Random(number)
        self.finished: list[tuple[dict[str, Any], str]] = []
        self.left = self.refused = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self.end:
            self.random.choice((self.stream, self.stream, self.leave, self.nonsense))()

    def body(self) -> dict[str, Any]:
        return {
            "prompt": f"x{self.random.randrange(50)} = ",
            "max_tokens": self.random.randrange(1, 60),
            "seed": self.random.randrange(1000), "alpha_0": self.random.choice([0.0, 0.4, 1.0]),
            "steps": self.random.randrange(1, 9), "guesses": self.random.choice([0, 3]),
        }  # fmt: skip

    def stream(self, most: int | None = None) -> None:
        import json

        body = {**self.body(), "stream": True}
        url, text = f"{self.server.url}/v1/completions", ""
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            if answer.status_code == 429:
                self.refused += 1
                time.sleep(0.05)
                return
            if answer.status_code != 200:
                self.wrong.append(f"{answer.status_code} for {body}")
                return
            for number, line in enumerate(answer.iter_lines()):
                if most is not None and number >= most:
                    self.left += 1
                    return
                if self.random.random() < 0.02:
                    time.sleep(0.2)  # a slow reader
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        if most is None:
            self.finished.append((body, text))

    def leave(self) -> None:
        self.stream(most=self.random.randrange(1, 6))

    def nonsense(self) -> None:
        body = self.random.choice([{"prompt": 5}, {"top_p": 7}, {"n": -1}, {"what": 1}])
        answer = self.server.completion(**body)
        if answer.status_code != 400:
            self.wrong.append(f"{answer.status_code} for {body}")


def crowd(server: Server, seconds: float) -> list[Client]:
    end = time.monotonic() + seconds
    clients = [Client(server, number, end) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    server.wait_until_idle()
    return clients


def test_a_crowd_leaves_no_trace(server: Server) -> None:
    crowd(server, 3.0)
    process = psutil.Process(server.process.pid)
    before, threads = process.memory_info().rss, process.num_threads()
    clients = crowd(server, SECONDS)
    assert [client.wrong for client in clients if client.wrong] == []
    finished = [each for client in clients for each in client.finished]
    assert len(finished) > CLIENTS
    assert sum(client.left for client in clients) > 0
    assert process.memory_info().rss - before < 64 << 20
    assert process.num_threads() <= threads + 2
    for body, text in random.Random(0).sample(finished, 20):
        alone = server.completion(**{**body, "stream": False}).json()["choices"][0]["text"]
        assert text == alone, body
