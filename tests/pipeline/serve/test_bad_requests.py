"""Whatever a client sends, it gets an answer that names the field, and the server goes on."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.pipeline.serve.conftest import SEQ_LEN, Server

COMPLETIONS, INFILL = "/v1/completions", "/v1/infill"


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (COMPLETIONS, {"promt": "x"}, "promt", "unknown field"),
        (COMPLETIONS, {"prompt": 5}, "prompt", "prompt: should be a valid string or a valid list"),
        (COMPLETIONS, {"prompt": [[1, "x"]]}, "prompt", "prompt.0.1: should be a valid integer"),
        (COMPLETIONS, {"max_tokens": "5"}, "max_tokens", "valid integer"),
        (COMPLETIONS, {"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        (COMPLETIONS, {"max_tokens": SEQ_LEN + 1}, "max_tokens", "4096 at most"),
        (COMPLETIONS, {"prompt": "x " * 9000}, "prompt", "4096 at most"),
        (COMPLETIONS, {"prompt": [1, 420]}, "prompt", "420 is outside of the vocabulary, 0 to 419"),
        (COMPLETIONS, {"prompt": [1, 3]}, "prompt", "3 is the mask"),
        (
            COMPLETIONS,
            {"prompt": [1, -1]},
            "prompt",
            "prompt.1: should be greater than or equal to 0",
        ),
        (COMPLETIONS, {"prompt": [None] * 100_000}, "prompt", "prompt.0: should be a valid string"),
        (COMPLETIONS, {"prompt": [""] * 300_000}, "prompt", "at most 1024 items"),
        (COMPLETIONS, {"prompt": [""] * 100}, "prompt", "100 texts at once are too many"),
        (COMPLETIONS, {"prompt": "\ud800"}, "prompt", "no valid Unicode"),
        (COMPLETIONS, {"temperature": -1}, "temperature", "greater than or equal to 0"),
        (COMPLETIONS, {"temperature": "hot"}, "temperature", "valid number"),
        (COMPLETIONS, {"top_p": 0}, "top_p", "greater than 0"),
        (COMPLETIONS, {"alpha_0": 1.5}, "alpha_0", "less than or equal to 1"),
        (COMPLETIONS, {"steps": 0}, "steps", "greater than or equal to 1"),
        (COMPLETIONS, {"steps": 10_001}, "steps", "less than or equal to 10000"),
        (COMPLETIONS, {"schedule": "random"}, "schedule", "binomial"),
        (COMPLETIONS, {"n": 100}, "n", "100 texts at once are too many"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs", "less than or equal to 20"),
        (COMPLETIONS, {"logprobs": 1, "stream": True}, "logprobs", "not of streams"),
        (COMPLETIONS, {"best_of": 2, "n": 3}, "best_of", "best_of: 2, and n is 3"),
        (COMPLETIONS, {"best_of": 3, "stream": True}, "best_of", "not of streams"),
        (COMPLETIONS, {"best_of": 100}, "best_of", "100 texts at once are too many"),
        (COMPLETIONS, {"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        (COMPLETIONS, {"stop": [f"s{i}" for i in range(10_000)]}, "stop", "at most 16 items"),
        (
            COMPLETIONS,
            {"guesses": 2, "speculate": 2},
            "speculate",
            "speculate: is another name of guesses: give one of the two",
        ),
        (COMPLETIONS, {"speculate": 17}, "speculate", "less than or equal to 16"),
        (COMPLETIONS, {"adaptive": 1}, "adaptive", "valid boolean"),
        (COMPLETIONS, {"stop": ""}, "stop", "at least 1 character"),
        (COMPLETIONS, {"seed": 1 << 70}, "seed", "seed: should be less than 9223372036854775808"),
        (COMPLETIONS, {"stream_mode": "fast"}, "stream_mode", "prefix"),
        (INFILL, {"segments": []}, "segments", "at least 1"),
        (INFILL, {"segments": [""]}, "segments", "neither text nor a gap"),
        (
            INFILL,
            {"segments": [{"gap": 0}]},
            "segments",
            "segments.0.gap: should be greater than or equal to 1",
        ),
        (
            INFILL,
            {"segments": [{"gap": 2.5}]},
            "segments",
            "segments.0.gap: should be a valid integer",
        ),
        (
            INFILL,
            {"segments": [{"gap": [3, 8]}]},
            "segments",
            "segments.0.gap: should be a valid integer",
        ),
        (INFILL, {"segments": [{"gap": 9000}]}, "segments", "4096 at most"),
        (INFILL, {"segments": [{"hole": 5}]}, "segments", "segments.0.gap: Field required"),
        (
            INFILL,
            {"segments": [3]},
            "segments",
            "segments.0: should be a valid string or an object",
        ),
        (INFILL, {"segments": ["x", {"gap": 2}], "stream": "yes"}, "stream", "boolean"),
        ("/detokenize", {"tokens": [5000]}, "tokens", "outside of the vocabulary"),
        ("/tokenize", {}, "prompt", "required"),
    ],
)
def test_refused(server: Server, path: str, body: Any, param: str, message: str) -> None:
    import json

    content = json.dumps(body)  # which leaves lone surrogates to the reader
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.url + path, content=content, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b"[1, 2]", 400),
        (b'"text"', 400),
        (b"null", 400),
        (b'{"max_tokens": NaN}', 400),
        (b"[" * 100_000, 400),
    ],
)
def test_bodies_that_are_none(server: Server, content: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server.url + COMPLETIONS, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_hundred_megabytes(server: Server) -> None:
    """Said beforehand, and in pieces without saying."""

    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * (1 << 20)
        yield b'"}'

    headers = {"Content-Type": "application/json"}
    for content in (b"x" * (100 << 20), pieces()):
        try:
            answer = httpx.post(server.url + COMPLETIONS, content=content, headers=headers)
        except httpx.WriteError:
            continue  # the server has answered and closed while the rest was still being sent
        assert answer.status_code == 413
        assert "more than 4 MiB" in answer.json()["error"]["message"]
    assert server.completion(prompt="x", max_tokens=1).status_code == 200


def test_other_paths_and_methods(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/chat").json()["error"]["code"] == 404
    assert httpx.get(f"{server.url}/v1/completions").json()["error"]["code"] == 405
