"""`/v1/infill`: what is given stays, and the stream tells each pass."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch

from esolm.pipeline.generate import load_bundle
from esolm.pipeline.serve.service import Limits, Service
from tests.pipeline.serve.conftest import Server, serving_here
from tests.pipeline.serve.test_completions import events_of

SEGMENTS = ["def f(x):\n    ", {"gap": 6}, " + x\n", {"gap": 3}, "end"]


@pytest.mark.parametrize("schedule", ["binomial", "fixed", "strided", "confidence"])
def test_gaps_are_filled(server: Server, schedule: str) -> None:
    body = {"segments": SEGMENTS, "seed": 3, "alpha_0": 0.5, "steps": 3, "schedule": schedule}
    answer = server.post("/v1/infill", **body).json()
    segments = answer["segments"]
    assert [each["given"] for each in segments] == [True, False, True, False, True]
    assert [segments[i]["text"] for i in (0, 2, 4)] == [SEGMENTS[i] for i in (0, 2, 4)]
    assert answer["text"] == "".join(each["text"] for each in segments)
    assert answer["usage"]["completion_tokens"] == 9
    written = [token for token in answer["tokens"] if not token["given"]]
    assert len(written) == 9
    assert {token["phase"] for token in written} == {"diffusion", "sequential"}
    assert max(token["pass"] for token in written) == answer["passes"]
    assert server.post("/v1/infill", **body).json()["text"] == answer["text"]


def test_the_stream_of_passes(server: Server) -> None:
    body = {"segments": SEGMENTS, "seed": 3, "alpha_0": 0.5, "steps": 3}
    start, *passes, end = events_of(server, "/v1/infill", **body)
    assert start["object"] == "infill.start"
    assert start["seed"] == 3
    assert len(passes) == end["passes"] == start["passes"]
    shown = {token["position"]: token["id"] for token in start["tokens"]}
    for number, each in enumerate(passes, start=1):
        assert (each["object"], each["pass"]) == ("infill.pass", number)
        new = {token["position"]: token["id"] for token in each["tokens"]}
        assert shown.keys().isdisjoint(new)
        shown |= new
    assert sorted(shown) == list(range(start["length"]))
    assert [token["id"] for token in end["tokens"]] == [shown[i] for i in range(start["length"])]
    whole = server.post("/v1/infill", **body).json()
    assert end["text"] == whole["text"]


def test_other_modes_of_the_stream(server: Server) -> None:
    body = {"segments": SEGMENTS, "seed": 3, "alpha_0": 0.5, "steps": 3}
    whole = server.post("/v1/infill", **body).json()["text"]
    *drafts, end = events_of(server, "/v1/infill", **body, stream_mode="draft")
    assert {each["object"] for each in drafts} == {"infill.draft"}
    assert drafts[-1]["text"] == end["text"] == whole
    *parts, end = events_of(server, "/v1/infill", **body, stream_mode="prefix")
    assert "".join(part["text"] for part in parts) == end["text"] == whole


def test_guesses_fill_in_fewer_passes(server: Server) -> None:
    body = {"segments": [{"gap": 200}], "seed": 3, "alpha_0": 0.0}
    plain = server.post("/v1/infill", **body).json()
    ahead = server.post("/v1/infill", **body, guesses=4).json()
    assert plain["passes"] == 200
    assert ahead["passes"] < 200
    assert ahead["usage"] == plain["usage"]
    assert server.post("/v1/infill", **body, speculate=4).json()["text"] == ahead["text"]


def test_adaptive_guesses_are_those_of_the_bundle(server: Server) -> None:
    body = {"segments": ["x", {"gap": 200}], "seed": 3, "alpha_0": 0.0, "guesses": 8}
    bundle = load_bundle(server.bundle)
    found = {}
    for is_adaptive in (False, True):
        answer = server.post("/v1/infill", **body, adaptive=is_adaptive).json()
        segments = [list(bundle.tokenizer.encode("x")), 200]
        options = {"seed": 3, "alpha_0": 0.0, "guesses": 8, "adaptive": is_adaptive}
        expected = bundle.model.infill(segments, **options)
        assert [token["id"] for token in answer["tokens"]] == expected.tokens.tolist()
        found[is_adaptive] = (answer["passes"], expected.nfe)
        assert answer["passes"] == expected.nfe
    assert found[False] != found[True]


def test_the_likelihood_of_the_text(server: Server) -> None:
    """Of the tokens that were written, from left to right, in one piece and at a stream's end."""
    body = {"segments": SEGMENTS, "seed": 3, "alpha_0": 0.5, "steps": 3}
    found = server.post("/v1/infill", **body, likelihood=True).json()
    ids = torch.tensor([[token["id"] for token in found["tokens"]]])
    expected = float(load_bundle(server.bundle).model.log_likelihood(ids))
    assert found["log_likelihood"] == pytest.approx(expected, abs=1e-4)
    assert found["nats_per_token"] == pytest.approx(-expected / ids.shape[1], abs=1e-5)
    end = events_of(server, "/v1/infill", **body, likelihood=True)[-1]
    assert end["log_likelihood"] == found["log_likelihood"]
    assert server.post("/v1/infill", **body).json()["log_likelihood"] is None


@pytest.mark.parametrize("objective", ["mdlm", "ar"])
def test_the_likelihood_of_other_objectives(
    make_bundle: Callable[..., Path], objective: str
) -> None:
    """MDLM has none. The first token of this AR has no share in it, so the mean is of one less."""
    bundle = load_bundle(make_bundle(objective=objective, variant=None, seq_len=64))
    body = {"segments": ["def f", {"gap": 4}], "seed": 1, "likelihood": True}
    with serving_here(Service(bundle, "net", Limits(rows=2))) as client:
        found = client.post("/v1/infill", json=body).json()
        if objective == "mdlm":
            assert (found["log_likelihood"], found["nats_per_token"]) == (None, None)
            return
        ids = torch.tensor([[token["id"] for token in found["tokens"]]])
        expected = float(bundle.model.log_likelihood(ids))
        assert found["log_likelihood"] == pytest.approx(expected, abs=1e-4)
        assert found["nats_per_token"] == pytest.approx(-expected / (ids.shape[1] - 1), abs=1e-5)
        [score] = client.post("/v1/score", json={"text": "def f(x)"}).json()["scores"]
        mean = -score["log_likelihood"] / (score["tokens"] - 1)
        assert score["nats_per_token"] == pytest.approx(mean)


def test_the_description_says_what_is_not_obvious(server: Server) -> None:
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    assert "one length, and no range" in schemas["Gap"]["properties"]["gap"]["description"]
    for name in ("CompletionRequest", "InfillRequest"):
        said = schemas[name]["properties"]["schedule"]["description"]
        assert "`confidence`" in said
        assert "is not the model's own distribution" in said
