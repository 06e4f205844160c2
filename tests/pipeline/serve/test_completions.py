"""`/v1/completions` by the official client: text, streams, errors, and equal to `generate`."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

from esolm.pipeline.generate import load_bundle
from esolm.pipeline.serve.completions import Choice
from esolm.pipeline.serve.engine import Finished
from esolm.pipeline.serve.texts import Draft
from tests.pipeline.serve.conftest import Server

MASK = 3


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def bundle(server: Server) -> Any:
    return load_bundle(server.bundle)


def written(bundle: Any, prompt: str, new: int, samples: int = 1, **options: Any) -> list[str]:
    """What `generate` writes behind the prompt."""
    ids = bundle.tokenizer.encode(prompt)
    found = bundle.model.generate(
        torch.tensor([list(ids)]), num_samples=samples, max_new_tokens=new, **options
    )
    front = len(bundle.tokenizer.decode(ids))
    return [bundle.tokenizer.decode(row)[front:] for row in found.tolist()]


def test_equal_to_generate(server: Server, client: openai.OpenAI, bundle: Any) -> None:
    for alpha_0, seed in ((0.0, 1), (0.5, 2), (1.0, 3)):
        answer = client.completions.create(
            model=server.bundle.name, prompt="def f(", max_tokens=20, n=2, seed=seed,
            extra_body={"alpha_0": alpha_0, "steps": 6, "guesses": 3},
        )  # fmt: skip
        options = {"alpha_0": alpha_0, "num_steps": 6, "guesses": 3}
        expected = written(bundle, "def f(", 20, 2, seed=seed, **options)
        assert [choice.text for choice in answer.choices] == expected
        assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 40
        assert answer.usage.prompt_tokens == len(bundle.tokenizer.encode("def f("))


def test_streams_of_the_official_client(server: Server, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": server.bundle.name, "prompt": "import ", "max_tokens": 60, "seed": 4,
        "extra_body": {"alpha_0": 0.3, "steps": 8},
    }  # fmt: skip
    whole = client.completions.create(**options)
    stream = client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert "".join(text) == whole.choices[0].text
    assert len(text) > 5
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "length"


def test_logprobs_of_the_official_client(
    server: Server, client: openai.OpenAI, bundle: Any
) -> None:
    """In its own types; they add up to the likelihood of what was written, in whatever order."""
    answer = client.completions.create(
        model=server.bundle.name, prompt="x = ", max_tokens=9, n=2, logprobs=2, seed=2,
        extra_body={"alpha_0": 0.5, "steps": 4, "ignore_eos": True},
    )  # fmt: skip
    front = list(bundle.tokenizer.encode("x = "))
    options = {"alpha_0": 0.5, "num_steps": 4, "seed": 2, "eos_token_id": None}
    rows = bundle.model.generate(torch.tensor([front]), num_samples=2, max_new_tokens=9, **options)
    given = torch.arange(rows.shape[1]) < len(front)
    expected = bundle.model.log_likelihood(rows, given=given).tolist()
    for choice, log_p in zip(answer.choices, expected, strict=True):
        found = choice.logprobs
        assert found is not None
        assert found.tokens is not None
        assert found.token_logprobs is not None
        assert found.top_logprobs is not None
        assert "".join(found.tokens) == choice.text
        assert sum(found.token_logprobs) == pytest.approx(log_p, abs=1e-4)
        ends = itertools.accumulate(map(len, found.tokens), initial=0)
        assert found.text_offset == list(ends)[:9]
        for value, best in zip(found.token_logprobs, found.top_logprobs, strict=True):
            assert 1 <= len(best) <= 2  # two tokens may have one text
            assert value <= max(best.values()) + 1e-6


def events_of(server: Server, path: str, **body: Any) -> list[dict[str, Any]]:
    with httpx.stream("POST", server.url + path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_drafts_and_events(server: Server) -> None:
    body = {"prompt": "a = ", "max_tokens": 24, "seed": 5, "alpha_0": 0.5, "steps": 4}
    whole = server.completion(**body).json()["choices"][0]["text"]
    drafts = events_of(server, "/v1/completions", **body, stream_mode="draft")
    kinds = {each["object"] for each in drafts}
    assert kinds == {"text_completion.draft", "text_completion"}
    assert drafts[-1]["choices"][0]["text"] == whole
    passes = events_of(server, "/v1/completions", **body, stream_mode="events")
    told = [each["choices"][0] for each in passes if each["object"] == "text_completion.pass"]
    assert [each["pass"] for each in told] == list(range(1, len(told) + 1))
    assert {each["phase"] for each in told} == {"diffusion", "sequential"}
    assert sum(len(each["tokens"]) for each in told) == 24
    assert passes[-1]["choices"][0]["text"] == whole


def test_prompts_in_every_form(server: Server, bundle: Any) -> None:
    ids = list(bundle.tokenizer.encode("for x in"))
    options = {"max_tokens": 8, "seed": 1, "alpha_0": 0.0}
    by_text = server.completion(prompt="for x in", **options).json()["choices"]
    assert by_text == server.completion(prompt=ids, **options).json()["choices"]
    lists = server.completion(prompt=[ids, ids[:2]], **options).json()["choices"]
    assert lists[0] == by_text[0]
    assert [choice["index"] for choice in lists] == [0, 1]
    texts = server.completion(prompt=["for x in", "if"], n=2, **options).json()["choices"]
    assert len(texts) == 4
    assert texts[0] == by_text[0]


def test_echo_suffix_and_nothing_to_write(server: Server) -> None:
    answer = server.completion(prompt="x = 1", max_tokens=0, echo=True).json()
    assert answer["choices"][0]["text"] == "x = 1"
    assert answer["usage"]["completion_tokens"] == 0
    filled = server.completion(prompt="def f", suffix="return x", max_tokens=5, seed=2, alpha_0=1.0)
    assert filled.status_code == 200
    assert filled.json()["usage"]["completion_tokens"] == 5


def test_stop_strings(server: Server) -> None:
    options: dict[str, Any] = {"prompt": "def ", "max_tokens": 80, "seed": 6, "alpha_0": 0.0}
    free = server.completion(**options).json()["choices"][0]["text"]
    stop = free[10:13]
    stopped = server.completion(**options, stop=[stop, "never there"]).json()["choices"][0]
    assert stopped["text"] == free[: free.index(stop)]
    assert stopped["finish_reason"] == "stop"
    chunks = events_of(server, "/v1/completions", **options, stop=stop)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == stopped["text"]


def test_a_stop_string_in_the_suffix_is_none(server: Server) -> None:
    body = {"prompt": "def f", "suffix": "#~#~ return", "max_tokens": 5, "seed": 2, "alpha_0": 0.0}
    free = server.completion(**body).json()["choices"]
    assert "#~#" not in free[0]["text"]
    assert server.completion(**body, stop="#~#").json()["choices"] == free
    stopped = server.completion(**body, stop=free[0]["text"][2]).json()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert free[0]["text"].startswith(stopped["text"])


def test_what_ends_behind_its_place_is_of_full_length(bundle: Any) -> None:
    """As an end in the rest of a block, which nobody has asked for."""
    choice = Choice(0, Draft(bundle.tokenizer, [5, 6, 7, 8, 9, 10, 11]), 2, 5, [])
    choice.take(Finished([5, 6, 7, 8, 9, 10, 11], "stop", 3))
    assert (choice.reason, choice.end) == ("length", 5)
    choice.take(Finished([5, 6, 7], "stop", 3))
    assert (choice.reason, choice.end) == ("stop", 3)


def test_sixteen_at_once_are_each_as_if_alone(server: Server, bundle: Any) -> None:
    """Other lengths, schedules and seeds; four rows, so that twelve wait or are sent away."""

    def ask(number: int) -> tuple[int, str]:
        body = {
            "prompt": f"n{number} = ", "max_tokens": 5 + number, "seed": number,
            "alpha_0": (number % 3) / 2, "steps": 1 + number % 5, "top_p": 0.9,
        }  # fmt: skip
        while (answer := server.completion(**body)).status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
        return number, answer.json()["choices"][0]["text"]

    with ThreadPoolExecutor(16) as pool:
        found = dict(pool.map(ask, range(16)))
    for number, text in found.items():
        options = {"alpha_0": (number % 3) / 2, "num_steps": 1 + number % 5, "top_p": 0.9}
        [expected] = written(bundle, f"n{number} = ", 5 + number, seed=number, **options)
        assert text == expected, number


def test_the_clients_own_errors(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9' here"):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.BadRequestError, match="tokens in all") as caught:
        client.completions.create(model=server.bundle.name, prompt="x", max_tokens=100_000)
    assert caught.value.param == "max_tokens"
    assert caught.value.type == "invalid_request_error"


def test_models_and_tokens(server: Server, client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == server.bundle.name
    ids = server.post("/tokenize", prompt="while True:").json()["tokens"]
    assert server.post("/detokenize", tokens=ids).json() == {"prompt": "while True:"}
    assert MASK not in server.post("/tokenize", prompt="<mask>[MASK]").json()["tokens"]
