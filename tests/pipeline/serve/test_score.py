"""`/v1/score` against the bundle's own likelihood."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from esolm.pipeline.generate import load_bundle
from tests.pipeline.serve.conftest import Server


def test_equal_to_the_bundle(server: Server) -> None:
    bundle = load_bundle(server.bundle)
    text, given = "return x + 1", "def f(x):"
    ids, front = (torch.tensor([list(bundle.tokenizer.encode(t))]) for t in (text, given))
    alone = bundle.model.log_likelihood(ids)
    [found] = server.post("/v1/score", text=text).json()["scores"]
    assert found["log_likelihood"] == pytest.approx(float(alone), abs=1e-4)
    assert found["tokens"] == ids.shape[1]
    assert found["bits_per_byte"] == pytest.approx(
        -float(alone) / math.log(2) / len(text), abs=1e-4
    )
    whole = torch.cat([front, ids], dim=1)
    behind = bundle.model.log_likelihood(
        whole,
        given=torch.arange(whole.shape[1]) < front.shape[1],
        num_orders=3,
        alpha_0=0.5,
        seed=4,
    )
    answer = server.post(
        "/v1/score", text=[text, text], given=given, num_orders=3, alpha_0=0.5, seed=4
    )
    for score in answer.json()["scores"]:
        assert score["log_likelihood"] == pytest.approx(float(behind), abs=1e-4)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": []}, "text"),
        ({"text": "x" * 9000}, "text"),
        ({"text": "x", "num_orders": 0}, "num_orders"),
        ({"text": "x", "alpha_0": 2}, "alpha_0"),
        ({"text": "x", "alpha_0": 0.5}, "alpha_0"),
        ({"text": "x", "alpha_0": 0.5, "num_orders": 1}, "alpha_0"),
        ({"text": "x", "order": [0]}, "order"),
    ],
)
def test_refused(server: Server, body: dict[str, object], param: str) -> None:
    answer = server.post("/v1/score", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_logprobs_of_a_given_text_are_its_likelihood(server: Server) -> None:
    """As harnesses ask for it: echo, nothing written."""
    bundle = load_bundle(server.bundle)
    ids = list(bundle.tokenizer.encode("def f(x): return x"))
    body = {"prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 3}
    [choice] = server.completion(**body).json()["choices"]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"] == "def f(x): return x"
    alone = float(bundle.model.log_likelihood(torch.tensor([ids])))
    assert sum(found["token_logprobs"]) == pytest.approx(alone, abs=1e-4)
    assert all(len(best) <= 3 for best in found["top_logprobs"])
    for token, value, best in zip(
        found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert value <= max(best.values()) + 1e-6
        assert best.get(token, value) == pytest.approx(value)
    assert found["text_offset"] == [
        sum(map(len, found["tokens"][:i])) for i in range(len(found["tokens"]))
    ]


def test_logprobs_of_what_was_written(server: Server) -> None:
    body = {"prompt": "x = ", "max_tokens": 9, "logprobs": 1, "seed": 2, "alpha_0": 0.5}
    [choice] = server.completion(**body, ignore_eos=True).json()["choices"]
    assert len(choice["logprobs"]["tokens"]) == 9
    assert all(value < 0 for value in choice["logprobs"]["token_logprobs"])


def test_many_scores_at_once(server: Server) -> None:
    """They take turns, and are sent away like texts when too many wait."""
    with ThreadPoolExecutor(24) as pool:
        found = list(
            pool.map(lambda _: server.post("/v1/score", text="a b " * 100, num_orders=9), range(24))
        )
    assert {answer.status_code for answer in found} == {200, 429}
    scores = {answer.json()["scores"][0]["log_likelihood"] for answer in found if answer.is_success}
    assert len(scores) == 1
    refused = next(answer for answer in found if answer.status_code == 429)
    assert refused.headers["Retry-After"] == "1"


def test_logprobs_of_a_long_text(server: Server) -> None:
    """As many as a text may have tokens."""
    began = time.monotonic()
    ids = [5 + place % 400 for place in range(4000)]
    body = {"prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 20}
    [choice] = server.completion(**body).json()["choices"]
    assert len(choice["logprobs"]["tokens"]) == 4000
    assert time.monotonic() - began < 30
