"""Clients that leave, a full queue, time limits, the key, and the end of the server."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.pipeline.serve.conftest import Server, serving
from tests.processes import run_python

LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 4000, "alpha_0": 0.0, "ignore_eos": True}


def test_a_client_that_leaves_frees_its_row(server: Server) -> None:
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}) as a:
        lines = a.iter_lines()  # which would be closed if nobody held it
        next(lines)
        assert server.figure("vllm:num_requests_running") == 1
    server.wait_until_idle()
    with pytest.raises(httpx.ReadTimeout):  # 4,000 tokens take longer than half a second
        httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=0.5)
    server.wait_until_idle()
    assert server.completion(prompt="x", max_tokens=2).status_code == 200


def test_a_stream_that_leaves_while_it_waits(server: Server) -> None:
    """Before its first chunk, behind texts that take all rows."""
    address = f"{server.url}/v1/completions"
    with ExitStack() as stack:
        for _ in range(4):
            answer = stack.enter_context(
                httpx.stream("POST", address, json={**LONG, "stream": True}, timeout=60)
            )
            lines = stack.enter_context(closing(answer.iter_lines()))
            next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address, json={**LONG, "stream": True}, timeout=0.3)
        server.wait_for(lambda: server.figure("vllm:num_requests_waiting") == 0, 5)
        assert server.figure("vllm:num_requests_running") == 4
    server.wait_until_idle()


def test_large_requests_hold_up_nobody(server: Server) -> None:
    """While one is read and planned, others are answered."""
    large = {"prompt": "x", "max_tokens": 2, "n": 9, "steps": 10_000, "alpha_0": 1.0}
    bodies = [{"prompt": "x y " * 1_000_000}, {"prompt": [""] * 300_000}, large]
    for body in bodies:
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda body=body, answers=answers: answers.append(server.completion(**body))
        )
        thread.start()
        slowest, started = 0.0, time.monotonic()
        while thread.is_alive():
            began = time.monotonic()
            httpx.get(f"{server.url}/health", timeout=60)
            slowest = max(slowest, time.monotonic() - began)
        assert answers[0].status_code in (200, 400)
        took = time.monotonic() - started
        assert slowest < max(2.0, took / 2), body.keys()


def test_a_full_queue_sends_away(server: Server) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(server.completion(**{**LONG, "max_tokens": 150}))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 10
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["Retry-After"] == "1"
    server.wait_until_idle()


def test_short_ones_do_not_wait_for_long_ones(server: Server) -> None:
    """They share passes: a short text is done long before a long one that came first."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}) as a:
        lines = a.iter_lines()  # which would be closed if nobody held it
        next(lines)
        assert server.completion(prompt="x", max_tokens=3).status_code == 200
        assert server.figure("vllm:num_requests_running") == 1
    server.wait_until_idle()


def test_metrics(server: Server) -> None:
    before = server.figure("vllm:generation_tokens_total")
    server.completion(prompt="x", max_tokens=7, ignore_eos=True)
    assert server.figure("vllm:generation_tokens_total") == before + 7
    assert server.figure("vllm:request_success_total") > 0


def test_key_time_limit_and_drain(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle(seq_len=4096)
    with serving(bundle, tmp_path, "--timeout", "2.5", "--name", "net", key="secret") as server:
        assert server.completion(prompt="x").json()["error"]["type"] == "authentication_error"
        headers = {"Authorization": "Bearer secret"}

        def ask(**body: Any) -> httpx.Response:
            return httpx.post(
                f"{server.url}/v1/completions", json=body, headers=headers, timeout=60
            )

        assert ask(prompt="x", model="net", max_tokens=2).status_code == 200
        late = ask(**LONG)
        assert late.status_code == 408
        assert "longer than 2.5 s" in late.json()["error"]["message"]

        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(**{**LONG, "max_tokens": 150})))
        thread.start()
        server.wait_for(lambda: server.figure("vllm:num_requests_running") == 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, 5)
        refused = ask(prompt="x")
        assert refused.status_code == 503
        score = httpx.post(f"{server.url}/v1/score", json={"text": "x"}, headers=headers)
        assert score.status_code == 503
        thread.join()
        assert answers[0].status_code == 200
        assert server.process.wait(20) == 0


def test_a_second_signal_ends_at_once(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with (
        serving(make_bundle(seq_len=4096), tmp_path) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}) as a,
    ):
        lines = a.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: httpx.get(f"{server.url}/ready").status_code == 503, 5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == -signal.SIGTERM


def test_what_cannot_be_served(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    none = run_python("-m", "esolm", "serve", str(tmp_path))
    assert none.returncode == 64
    assert "is no bundle" in none.stderr
    bundle = make_bundle()
    weights = bundle / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    altered = run_python("-m", "esolm", "serve", str(bundle))
    assert altered.returncode != 0
    assert "model.safetensors" in altered.stderr
