"""`/v1/score` against the bundle's own likelihood."""

import math

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
        ({"text": "x", "order": [0]}, "order"),
    ],
)
def test_refused(server: Server, body: dict[str, object], param: str) -> None:
    answer = server.post("/v1/score", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
