"""lm-eval's `local-completions` against the server: the figures of our own adapter of a bundle."""

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.generate.whole_bundles import Bundles, tokenizer_directory, whole_bundle
from tests.pipeline.serve.conftest import Server, serving

__all__ = ["tokenizer_directory", "whole_bundle"]

pytest.importorskip("lm_eval", reason="the optional extra lm-eval is not installed")
pytest.importorskip("tenacity", reason="lm-eval's models of an API are not installed")
pytestmark = pytest.mark.check
PAIRS = [
    ("def f(x):\n    return", " x + 1"),
    ("import os ", "path"),  # the space goes to the continuation
    ("for x in range", "(10):"),
    ("Grüße", " \u4e2d"),
    ("def", " g"),
]
MODES: list[dict[str, Any]] = [
    {"tokenized_requests": True, "batch_size": 3},
    {"tokenized_requests": False},
    {"tokenized_requests": True, "num_concurrent": 3},
]
PROMPTS = [("def f(", {"until": ["\n", "e"]}), ("class ", {"until": ["zzz"], "max_gen_toks": 4})]


def instances(kind: str, arguments: list[Any]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=number)
        for number, each in enumerate(arguments)
    ]


def by_api(server: Server, **options: Any) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", model=server.bundle.name,
        tokenizer=str(server.bundle), trust_remote_code=True, **options,
    )  # fmt: skip


def alike(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    for (log_p, is_greedy), (own_log_p, is_own_greedy) in zip(found, expected, strict=True):
        assert log_p == pytest.approx(own_log_p, abs=1e-3)
        assert is_greedy == is_own_greedy


def a_greedy_pair(own: Any) -> tuple[str, str]:
    """A continuation that the network itself would take."""
    pieces = [chr(letter) for letter in range(32, 127)] + [" a", " in", "self", "re", "th", "\n   "]
    pairs = [(context, piece) for context in "abcdefghijkl" for piece in pieces]
    scores = own.loglikelihood(instances("loglikelihood", pairs))
    return next(pair for pair, (_, greedy) in zip(pairs, scores, strict=True) if greedy)


@pytest.mark.parametrize("system", ["esolm_b", "ar"])
def test_the_figures_of_our_own_adapter(whole_bundle: Bundles, tmp_path: Path, system: str) -> None:
    """Ids in batches, text, and ids by several at once; as lm-eval sends them."""
    from esolm.pipeline.evaluate.harness import EsoLMHarness

    bundle = whole_bundle(system)
    own = EsoLMHarness(str(bundle), max_gen_toks=8)
    greedy = own.generate_until(instances("generate_until", PROMPTS))
    assert greedy[1]
    scores = instances("loglikelihood", [*PAIRS, a_greedy_pair(own)])
    expected = own.loglikelihood(scores)
    assert {is_greedy for _, is_greedy in expected} == {False, True}
    asked = [(prompt, {**options, "alpha_0": 0.0}) for prompt, options in PROMPTS]
    with serving(bundle, tmp_path) as server:
        for mode in MODES:
            api = by_api(server, max_length=24, max_gen_toks=8, **mode)
            alike(api.loglikelihood(scores), expected)
            assert api.generate_until(instances("generate_until", asked)) == greedy
