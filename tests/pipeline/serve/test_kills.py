"""kill -9 of the server and a new one at its port, while official clients go on asking."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from esolm.pipeline.generate import load_bundle
from tests.pipeline.serve.conftest import Server, answers, free_port, start
from tests.pipeline.serve.offline import offline

pytestmark = pytest.mark.check
CLIENTS, TEXTS, KILLS = 8, 6, 2
OPTIONS = ("--rows", "4", "--queue", "2")


class Client(threading.Thread):
    """Asks until it has all its texts. broken: streams that ended early, by request."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.api = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=50, timeout=120)
        self.random = random.Random(number)
        self.finished: list[tuple[dict[str, Any], str]] = []
        self.broken: list[tuple[dict[str, Any], str]] = []

    def run(self) -> None:
        while len(self.finished) < TEXTS:
            body: dict[str, Any] = {
                "prompt": f"x{self.random.randrange(50)} = ",
                "max_tokens": self.random.randrange(100, 300),
                "seed": self.random.randrange(1000),
                "extra_body": {"alpha_0": self.random.choice([0.0, 0.4]), "steps": 8},
            }
            ask = self.stream if len(self.finished) % 2 else self.whole
            while not ask(body):
                pass

    def whole(self, body: dict[str, Any]) -> bool:
        answer = self.api.completions.create(model="net", **body)
        self.finished.append((body, answer.choices[0].text))
        return True

    def stream(self, body: dict[str, Any]) -> bool:
        """A client of streams asks anew itself, as the official one does only for whole answers."""
        text, reason = "", None
        stream = self.api.completions.create(model="net", stream=True, **body)
        try:
            for chunk in stream:
                text += chunk.choices[0].text
                reason = chunk.choices[0].finish_reason
        except openai.APIConnectionError:
            self.broken.append((body, text))
            return False
        assert reason == "length", "a stream that ends is whole"
        self.finished.append((body, text))
        return True


def kill_while_it_writes(server: Server, clients: list[Client]) -> None:
    """In the middle of texts, with others waiting, and after some that are done."""
    done = sum(len(client.finished) for client in clients)
    server.wait_for(lambda: sum(len(client.finished) for client in clients) > done + 4, 240)
    server.wait_for(lambda: server.figure("vllm:num_requests_running") == 4, 60)
    server.process.kill()
    server.process.wait()


def test_clients_get_their_texts_from_the_next_server(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path, port = make_bundle(seq_len=512), free_port()
    server = start(path, tmp_path, port, "--name", "net", *OPTIONS)
    clients = [Client(server.url, number) for number in range(CLIENTS)]
    try:
        server.wait_for(lambda: answers(server), 240)
        for client in clients:
            client.start()
        for _ in range(KILLS):
            kill_while_it_writes(server, clients)
            server = start(path, tmp_path, port, "--name", "net", *OPTIONS)
            server.wait_for(lambda now=server: answers(now), 240)
        for client in clients:
            client.join(240)
            assert not client.is_alive(), "a client hangs"
        server.wait_until_idle()
    finally:
        server.process.kill()
        server.process.wait()
    bundle = load_bundle(path)
    assert any(text for client in clients for _, text in client.broken)
    for client in clients:
        assert len(client.finished) == TEXTS
        for body, text in client.finished:
            assert text == alone(bundle, body), body
        for body, text in client.broken:
            assert alone(bundle, body).startswith(text), body


def alone(bundle: Any, body: dict[str, Any]) -> str:
    own = {name: value for name, value in body.items() if name != "extra_body"}
    return offline(bundle, **own, **body["extra_body"])
