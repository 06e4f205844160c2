"""`best_of`: equal to writing as many offline and choosing by the bundle's own likelihood."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.pipeline.generate import load_bundle
from esolm.pipeline.serve.service import Limits, Service
from tests.pipeline.serve.conftest import Server, serving_here

COUNT, NEW, PROMPT = 7, 20, "def f("
STOPS = list("aeinrst(")


def stopped(tokenizer: Any, ids: list[int], first: int) -> tuple[list[int], str]:
    """The tokens up to the one that completes a stop string, and the text in front of that."""
    offset = len(tokenizer.decode(ids[:first]))
    for end in range(first + 1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])[offset:]
        if places := [text.find(stop) for stop in STOPS if stop in text]:
            return ids[:end], text[: min(places)]
    return ids, tokenizer.decode(ids)[offset:]


@pytest.mark.parametrize("alpha_0", [0.0, 0.6])
def test_equal_to_choosing_offline(server: Server, alpha_0: float) -> None:
    """Texts end early, so that the sum of log p and its mean choose differently."""
    bundle = load_bundle(server.bundle)
    front = list(bundle.tokenizer.encode(PROMPT))
    rows = bundle.model.generate(
        torch.tensor([front]), num_samples=COUNT, max_new_tokens=NEW, seed=11, alpha_0=alpha_0,
        num_steps=6,
    ).tolist()  # fmt: skip
    ids, texts = zip(*(stopped(bundle.tokenizer, row, len(front)) for row in rows), strict=True)
    assert len(set(map(len, ids))) > 2
    sums, means = [], []
    for text in ids:
        given = torch.arange(len(text)) < len(front)
        sums.append(float(bundle.model.log_likelihood(torch.tensor([text]), given=given)))
        means.append(sums[-1] / (len(text) - len(front)))
    by_mean = sorted(range(COUNT), key=lambda number: -means[number])
    assert by_mean[:3] != sorted(range(COUNT), key=lambda number: -sums[number])[:3]

    expected = [texts[number] for number in by_mean[:3]]
    body = {
        "prompt": PROMPT, "max_tokens": NEW, "n": 3, "best_of": COUNT, "seed": 11, "stop": STOPS,
        "alpha_0": alpha_0, "steps": 6, "ignore_eos": True,
    }  # fmt: skip
    answer = server.completion(**body)
    assert answer.status_code == 200, answer.text
    assert [choice["text"] for choice in answer.json()["choices"]] == expected
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2]
    assert answer.json()["usage"]["completion_tokens"] == sum(map(len, ids)) - COUNT * len(front)
    with_logprobs = server.completion(**body, logprobs=0).json()["choices"]
    for choice, number in zip(with_logprobs, by_mean, strict=False):
        found = choice["logprobs"]["token_logprobs"]
        assert sum(found) / len(found) == pytest.approx(means[number], abs=1e-4)


def test_several_prompts_and_nothing_to_choose(server: Server) -> None:
    body = {"prompt": ["a = ", "b = "], "max_tokens": 8, "seed": 2, "alpha_0": 0.0}
    both = server.completion(**body, n=2, best_of=2).json()["choices"]
    assert both == server.completion(**body, n=2).json()["choices"]
    best = server.completion(**body, n=1, best_of=2).json()["choices"]
    assert [choice["index"] for choice in best] == [0, 1]
    texts = [choice["text"] for choice in both]
    assert best[0]["text"] in texts[:2]
    assert best[1]["text"] in texts[2:]
    nothing = server.completion(**{**body, "max_tokens": 0}, best_of=3).json()["choices"]
    assert [choice["text"] for choice in nothing] == ["", ""]


def test_a_network_without_a_likelihood(make_bundle: Callable[..., Path]) -> None:
    path = make_bundle(objective="mdlm", variant=None, seq_len=64)
    with serving_here(Service(load_bundle(path), "net", Limits(rows=2))) as client:
        body = {"prompt": "x", "max_tokens": 4, "seed": 1}
        refused = client.post("/v1/completions", json={**body, "best_of": 2})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "best_of"
        assert "trained as 'mdlm' has no exact likelihood" in refused.json()["error"]["message"]
        assert client.post("/v1/completions", json={**body, "best_of": 1}).status_code == 200
