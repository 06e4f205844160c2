"""A pass that fails costs the texts of that pass, and nothing else."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from esolm.pipeline.generate import load_bundle
from esolm.pipeline.serve.service import Limits, Service
from tests.pipeline.serve.conftest import serving_here

POISON = [417] * 8


def failing_at(network: Any, prompt: list[int]) -> None:
    """Makes every pass fail that reads the prompt, as one does that runs out of memory."""
    decode = network.model.decode

    def fail(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        if (tokens == prompt[0]).sum() >= len(prompt):
            raise torch.OutOfMemoryError("no memory is left")
        return decode(tokens, *rest)

    network.model.decode = fail


def test_a_pass_that_fails(make_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(make_bundle(seq_len=2000))
    body = {"prompt": [5, 6, 7], "max_tokens": 12, "seed": 3, "alpha_0": 0.5, "steps": 4}
    options = {"max_new_tokens": 12, "seed": 3, "alpha_0": 0.5, "num_steps": 4}
    expected = bundle.model.generate(torch.tensor([[5, 6, 7]]), **options)[0].tolist()
    failing_at(bundle.model, POISON)
    service = Service(bundle, "net", Limits(rows=2, queue=4))
    beside: list[httpx.Response] = []
    with serving_here(service) as client:
        long = {**body, "max_tokens": 1900, "alpha_0": 0.0}
        thread = threading.Thread(
            target=lambda: beside.append(client.post("/v1/completions", json=long))
        )
        thread.start()
        while service.engine.passes < 5:
            assert thread.is_alive()
        for _ in range(3):  # more often than there are rows
            failed = client.post("/v1/completions", json={**body, "prompt": POISON})
            assert failed.status_code == 500
            error = failed.json()["error"]
            assert error["type"] == "server_error"
            assert error["message"] == "a forward pass failed: no memory is left"
        thread.join()
        assert beside[0].status_code == 500  # it was in the first of these passes
        answer = client.post("/v1/completions", json=body).json()
        front = len(bundle.tokenizer.decode([5, 6, 7]))
        assert answer["choices"][0]["text"] == bundle.tokenizer.decode(expected)[front:]
        assert service.engine.num_running == 0


@pytest.mark.parametrize("size", [8, 64])
def test_the_last_block_may_stand_out(make_bundle: Callable[..., Path], size: int) -> None:
    """A BD3-LM writes whole blocks, also where the longest text ends within one."""
    path = make_bundle(objective="bd3lm", variant=None, block_size=size, seq_len=100)
    service = Service(load_bundle(path), "net", Limits(rows=2))
    with serving_here(service) as client:
        for body in ({"max_tokens": 98, "prompt": [5, 6]}, {"max_tokens": 2, "prompt": [5]}):
            answer = client.post("/v1/completions", json={**body, "steps": 4})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == body["max_tokens"]


def test_a_text_that_finds_no_place(make_bundle: Callable[..., Path]) -> None:
    """Which is a fault of this project: it is told, and the next one is served."""
    service = Service(load_bundle(make_bundle(seq_len=100)), "net", Limits(rows=1))
    service.max_length = 1000  # the rows were made for fewer
    with serving_here(service) as client:
        failed = client.post("/v1/completions", json={"prompt": [5], "max_tokens": 500})
        assert failed.status_code == 500
        assert "501 slots are due, and a row has 117" in failed.json()["error"]["message"]
        answer = client.post("/v1/completions", json={"prompt": [5], "max_tokens": 50})
        assert answer.status_code == 200


def test_a_fault_outside_of_a_pass(make_bundle: Callable[..., Path]) -> None:
    """Before the answer has begun, and within a stream."""
    bundle = load_bundle(make_bundle(seq_len=100))
    service = Service(bundle, "net", Limits(rows=2))
    body = {"prompt": [5], "max_tokens": 9, "alpha_0": 0.0, "seed": 1}
    decode, calls = bundle.tokenizer.decode, 0

    def fail_late(ids: list[int]) -> str:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise RuntimeError("not for clients")
        return str(decode(ids))

    with serving_here(service) as client:
        bundle.tokenizer.decode = fail_late
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert len(lines) > 2
        assert json.loads(lines[-2].removeprefix("data: "))["error"] == {
            "message": "a fault of the server: RuntimeError", "type": "server_error",
            "param": None, "code": 500,
        }  # fmt: skip
        assert lines[-1] == "data: [DONE]"
        whole = client.post("/v1/completions", json=body)
        assert whole.status_code == 500
        assert whole.json()["error"]["message"] == "a fault of the server: RuntimeError"
        bundle.tokenizer.decode = decode
        assert client.post("/v1/completions", json=body).status_code == 200
        assert service.engine.num_running == 0


def test_a_likelihood_is_broken_off_when_its_client_leaves(
    make_bundle: Callable[..., Path],
) -> None:
    """After the pass that is under way; the next one does not wait for the rest."""
    bundle = load_bundle(make_bundle(seq_len=2000))
    service = Service(bundle, "net", Limits(rows=1))
    forward, passes = bundle.model.forward, 0

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*given, **options)

    bundle.model.forward = counted
    bodies = {
        "/v1/score": {"text": ["a b " * 100] * 9, "num_orders": 128},
        "/v1/completions": {"prompt": [[5] * 300] * 60, "echo": True, "max_tokens": 0,
                            "logprobs": 1},
    }  # fmt: skip
    with serving_here(service) as client:
        for path, body in bodies.items():
            passes = 0
            with left_open(client, path, body):
                while passes < 3:
                    time.sleep(0.01)
            for _ in range(2):  # the first waits for the pass that is under way
                most = passes
                assert client.post("/v1/score", json={"text": "x"}).status_code == 200
            assert passes == most + 1
            assert passes < 60, "of 128 for the first text, and of 60"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"text": ["a b "] * 64}),
        ("/v1/score", {"text": "a b ", "num_orders": 100}),
        ("/v1/completions", {"prompt": [[5] * 3] * 60, "echo": True, "max_tokens": 0,
                             "logprobs": 1}),
        ("/v1/completions", {"prompt": [5], "max_tokens": 1, "best_of": 60}),
    ],
)  # fmt: skip
def test_likelihoods_end_with_the_time_of_their_request(
    make_bundle: Callable[..., Path], path: str, body: dict[str, Any]
) -> None:
    """One that works, and one that waits for it; then the thread is free for the next one."""
    bundle = load_bundle(make_bundle(seq_len=100))
    service = Service(bundle, "net", Limits(rows=16, queue=128, seconds=2.0))
    forward, passes = bundle.model.forward, 0

    def slow(*given: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        time.sleep(0.25)
        return forward(*given, **options)

    bundle.model.forward = slow
    with serving_here(service) as client, ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda _: client.post(path, json=body), range(2)))
        assert time.monotonic() - began < 10, "of 30 s and more"
        for answer in answers:
            assert answer.status_code == 408, answer.text
            assert answer.json()["error"]["type"] == "timeout_error"
            message = "the request took longer than 2 s, likelihoods included"
            assert message in answer.json()["error"]["message"]
        assert client.post("/v1/score", json={"text": "x"}).status_code == 200
        assert 1 < passes < 15, "of 60 or more"


@contextmanager
def left_open(client: httpx.Client, path: str, body: dict[str, Any]) -> Iterator[None]:
    """A request whose client goes at the end, without an answer."""
    port, content = client.base_url.port, json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port or 0)) as raw:
        raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield
