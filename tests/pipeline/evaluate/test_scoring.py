"""Continuations scored in one forward, against decoding step by step; the harness adapter."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.scoring import Scorer, windows
from esolm.pipeline.evaluate.task_options import decoding_of, share_out
from esolm.pipeline.generate import Request, load_bundle

REQUESTS = [
    ([5, 6, 7], [8, 9, 10, 11]),
    ([], [12, 13]),
    ([4], [5]),
    ([9, 9, 9, 9, 9, 9], [1, 2, 30]),
    ([3, 4], []),
]


def stepwise(model: Any, context: list[int], continuation: list[int]) -> float:
    """Decoding by hand: one forward per token over everything that is written."""
    config, written, total = model.config, list(context), 0.0
    for token in continuation:
        if config.objective == "ar":
            front = [] if context else [config.bos_token_id]
            if config.prepend_token_id is not None:
                front = [config.prepend_token_id]
            fed = torch.tensor([[*front, *written]])
        else:
            fed = torch.tensor([[*written, config.mask_token_id]])
        with torch.no_grad():
            logits = model(fed, attention_pattern="causal").logits
            total += float(logits[0, -1].log_softmax(-1)[token])
        written.append(token)
    return total


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "ar", "ar_bos"])
def test_one_forward_equals_decoding_step_by_step(
    name: str, make_bundle: Callable[[str], Path]
) -> None:
    """All requests in one batch of different lengths, in fp32: within 3e-6."""
    model = load_bundle(make_bundle(name)).model.float().cpu()
    calls = []
    handle = model.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    scores = Scorer(model, first_id=model.config.bos_token_id).score(REQUESTS)
    handle.remove()
    assert len(calls) == 1
    for (context, continuation), score in zip(REQUESTS, scores, strict=True):
        expected = stepwise(model, context, continuation)
        assert abs(score.log_p - expected) <= 3e-6 * max(1.0, abs(expected))
    alone = Scorer(model, first_id=model.config.bos_token_id).score(REQUESTS[:1])
    assert alone[0].log_p == pytest.approx(scores[0].log_p, abs=1e-5)


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "ar"])
def test_greedy(name: str, make_bundle: Callable[[str], Path]) -> None:
    model = load_bundle(make_bundle(name)).model.float().cpu()
    prompt = [5, 6, 7]
    output = model.generate(torch.tensor([prompt]), length=8, alpha_0=0.0, temperature=0.0)
    best = output[0, 3:].tolist()
    scorer = Scorer(model)
    other = [*best[:-1], (best[-1] + 1) % 400]
    assert [s.is_greedy for s in scorer.score([(prompt, best), (prompt, other)])] == [True, False]
    assert scorer.score([(prompt, [])])[0] == scorer.score([([], [])])[0]


def test_networks_without_left_to_right_likelihood(make_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="was trained as mdlm"):
        Scorer(load_bundle(make_bundle("mdlm")).model)
    scorer = Scorer(load_bundle(make_bundle("ar")).model)
    with pytest.raises(ConfigError, match="predicts no first token"):
        scorer.score([([], [5])])


def test_windows_score_every_token_once() -> None:
    ids = list(range(10))
    assert windows(ids, 20) == [([], ids)]
    assert windows([], 4) == []
    assert windows(ids, 4) == [([], [0, 1, 2, 3]), ([3], [4, 5, 6]), ([6], [7, 8, 9])]
    for size in (2, 3, 7):
        parts = windows(ids, size)
        assert [token for _, part in parts for token in part] == ids
        assert all(len(context) + len(part) <= size for context, part in parts)


@pytest.mark.parametrize(
    ("length", "tokens", "max_new", "kept", "new"),
    [
        (1024, 100, 256, 100, 256),
        (1024, 1000, 256, 768, 256),
        (256, 100, 256, 100, 156),
        (256, 200, 256, 128, 128),
        (128, 3, 256, 3, 125),
        (16, 0, 256, 0, 16),
        (16, 40, 4, 12, 4),
        (2, 9, 256, 1, 1),
    ],
)
def test_room_for_the_context(length: int, tokens: int, max_new: int, kept: int, new: int) -> None:
    context = list(range(tokens))
    assert share_out(length, context, max_new) == (context[tokens - kept :], new)


@pytest.mark.parametrize(
    ("options", "temperature", "top_p"),
    [
        ({}, 0.0, 0.9),
        ({"do_sample": False, "temperature": 0.7}, 0.0, 0.9),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.5}, 0.7, 0.5),
        ({"temperature": 0.3}, 0.3, 0.9),
        ({"do_sample": True}, 1.0, 0.9),
        ({"temperature": 0.0, "top_p": 1.0, "until": ["x"]}, 0.0, 1.0),
    ],
)
def test_a_task_says_how_to_decode(
    options: dict[str, Any], temperature: float, top_p: float
) -> None:
    request = decoding_of(Request(temperature=0.0, top_p=0.9), options)
    assert (request.temperature, request.top_p) == (temperature, top_p)
    if options.get("do_sample") and "temperature" not in options:
        assert decoding_of(Request(temperature=0.6), options).temperature == 0.6


def test_generation_for_a_task(
    make_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package: stand-ins for the two names that the adapter takes from it."""
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["lm_eval.api.model"], "LM", object, raising=False)
    registry = sys.modules["lm_eval.api.registry"]
    monkeypatch.setattr(registry, "register_model", lambda _: lambda found: found, raising=False)
    monkeypatch.delitem(sys.modules, "esolm.pipeline.evaluate.harness", raising=False)
    harness = importlib.import_module("esolm.pipeline.evaluate.harness")
    monkeypatch.delitem(sys.modules, "esolm.pipeline.evaluate.harness")
    model = harness.EsoLMHarness(str(make_bundle("esolm_b")))
    fed: list[int] = []
    hook = lambda _, given: fed.append(len(given[0]))  # noqa: E731
    model._bundle.model.model.embed_tokens.register_forward_pre_hook(hook)
    text = "ba be bin bor bus ca ce cin da de din dor " * 4

    def written(**options: Any) -> str:
        fed.clear()
        request = SimpleNamespace(args=(text, {"until": [], **options}))
        found: str = model.generate_until([request])[0]
        return found

    greedy = written()
    assert fed[0] == 9, "half of the network's 16 tokens are left to a long context"
    assert written(do_sample=False, temperature=1.0) == greedy
    assert written(do_sample=True, temperature=1.0) != greedy


def test_the_harness_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "esolm.pipeline.evaluate.harness", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'esolm\[lm-eval\]'"):
        import esolm.pipeline.evaluate.harness  # noqa: F401


TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


def test_a_local_task_of_the_harness(
    make_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, with the task's answer made the likelier choice by our own scorer."""
    pytest.importorskip("lm_eval", reason="the optional extra lm-eval is not installed")
    import json

    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

    from esolm.pipeline.evaluate.harness import EsoLMHarness

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = EsoLMHarness(str(make_bundle("esolm_b")), batch_size=3)

    def instance(kind: str, *arguments: Any) -> Instance:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    rows = []
    for question in ("ba be", "bin bor", "bus ca"):
        choices = ["ce cin", "da", "de din"]
        scores = model.loglikelihood(
            [instance("loglikelihood", question, f" {c}") for c in choices]
        )
        best = max(range(3), key=lambda i: scores[i][0])
        rows.append({"question": question, "choices": choices, "answer": best})
    data = tmp_path / "task.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_choice.yaml").write_text(TASK.format(file=data))
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=model, tasks=["local_choice"], task_manager=manager, bootstrap_iters=0
    )
    assert results["results"]["local_choice"]["acc,none"] == 1.0
    text = "ba be bin bor bus ca ce cin da de din dor " * 4
    (rolling,) = model.loglikelihood_rolling([instance("loglikelihood_rolling", text)])
    assert rolling < 0
    options = {"until": ["\n"], "max_gen_toks": 6}
    (written,) = model.generate_until([instance("generate_until", "ba be", options)])
    assert "\n" not in written
