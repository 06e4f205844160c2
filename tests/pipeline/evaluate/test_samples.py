"""Figures of samples: closed forms, the judge against a plain forward, sweeps, the picture."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esolm.pipeline.errors import ConfigError, DataError
from esolm.pipeline.evaluate import mauve_score, pareto
from esolm.pipeline.evaluate.judge import Judge
from esolm.pipeline.evaluate.quality import distinct, unigram_entropy
from esolm.pipeline.evaluate.sampling import SampleSettings, measure_samples, settings_of
from esolm.pipeline.evaluate.show import samples_text
from esolm.pipeline.export.manifest import NAME
from esolm.pipeline.generate import load_bundle
from tests.foreign_tokenizers import like_gpt2, saved

CPU = torch.device("cpu")


def test_entropy() -> None:
    assert unigram_entropy(np.array([[5, 5, 5, 5]])) == 0.0
    assert unigram_entropy(np.array([[1, 2, 3, 4]])) == pytest.approx(math.log(4))
    mixed = unigram_entropy(np.array([[1, 1, 2, 2], [7, 7, 7, 7]]))
    assert mixed == pytest.approx(math.log(2) / 2), "of each sample, then averaged"


def test_distinct() -> None:
    tokens = np.array([[1, 2, 1, 2], [1, 2, 3, 4]])
    assert distinct(tokens, 1) == 4 / 8
    assert distinct(tokens, 2) == 4 / 6  # 12 21 23 34
    assert distinct(tokens, 3) == 4 / 4
    assert distinct(tokens, 5) is None


def test_generative_perplexity(judge: Path) -> None:
    """Two texts, one longer than the judge's context of 24 tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["ba be bi bo", "The quick brown fox jumps over it", "", "x"]
    model = AutoModelForCausalLM.from_pretrained(judge)
    tokenizer = AutoTokenizer.from_pretrained(judge)
    nats, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        for window in (ids[:24], ids[24:]):
            for place in range(1, len(window)):
                with torch.no_grad():
                    logits = model(torch.tensor([window[:place]])).logits[0, -1]
                nats -= float(logits.log_softmax(-1)[window[place]])
                count += 1
    assert len(tokenizer(texts[1])["input_ids"]) > 24
    found = Judge(judge, CPU).perplexity(texts)
    assert found["tokens"] == count
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert Judge(judge, CPU).perplexity(["x"])["perplexity"] is None


def test_a_folder_that_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenizer"):
        Judge(tmp_path, CPU)
    tokenizer = saved(like_gpt2(), tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Judge(tokenizer, CPU)


@pytest.mark.parametrize("name", ["ar", "ar_bos"])
def test_a_bundle_of_ours_as_judge(make_bundle: Callable[[str], Path], name: str) -> None:
    bundle = load_bundle(make_bundle(name))
    assert bundle.tokenizer is not None
    ids = bundle.tokenizer.encode("a text of some words", recognise_specials=True)
    front = [] if name == "ar" else [bundle.model.config.prepend_token_id]
    with torch.no_grad():
        logits = bundle.model(torch.tensor([front + ids])).logits[0, len(front) :]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    found = Judge(bundle.path, CPU).perplexity(["a text of some words"])
    assert found["nats_per_token"] == pytest.approx(float(expected), rel=1e-5)


def test_a_judge_never_asks(
    make_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle without its record is foreign code."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("asked") or "n")
    with pytest.raises(ConfigError, match="'esolm', which does not predict the next token"):
        Judge(make_bundle("esolm_b"), CPU)
    foreign = tmp_path / "foreign"
    shutil.copytree(make_bundle("ar"), foreign)
    (foreign / NAME).unlink()
    config = json.loads((foreign / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = "modeling_esolm.EsoLMForMaskedLM"
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="it brings code of its own, which is not run"):
        Judge(foreign, CPU)
    assert not asked


def test_sweep(make_bundle: Callable[[str], Path], judge: Path, tmp_path: Path) -> None:
    settings = SampleSettings([0.0, 0.5, 1.0], [2, 6], num_samples=3, batch_size=2, seed=5)
    out = tmp_path / "sweep"
    report = measure_samples(make_bundle("esolm_b"), settings, judge=judge, out=out)
    found = report["settings"]
    grid = [(each["alpha_0"], each["steps"]) for each in found]
    assert grid == [(0.0, None), (0.5, 2), (0.5, 6), (1.0, 2), (1.0, 6)]
    for each in found:
        assert (each["samples"], each["length"]) == (3, 16)
        assert each["seconds_per_sample"] > 0
        assert 0 < each["entropy"] <= math.log(16)
        assert 0 < each["distinct_1"] <= 1
        assert each["generative_perplexity"] > 1
        assert each["mauve"] is None
    assert found[0]["nfe"] == 16
    assert found[3]["nfe"] <= 2
    with (out / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["nfe"]) for row in rows] == [each["nfe"] for each in found]
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(report)) == report
    assert "gen. ppl" in samples_text(report)
    again = measure_samples(make_bundle("esolm_b"), settings)["settings"]
    assert [each["entropy"] for each in again] == [each["entropy"] for each in found]


def test_autoregressive_samples_have_one_setting(make_bundle: Callable[[str], Path]) -> None:
    bundle = load_bundle(make_bundle("ar"))
    assert len(settings_of(bundle, SampleSettings([0.5, 1.0], [2, 6]))) == 1


@pytest.mark.parametrize("name", ["mdlm", "esolm_a", "bd3lm_bos"])
def test_every_objective_has_samples(
    make_bundle: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Only an Eso-LM has a choice of alpha_0."""
    settings = SampleSettings([0.0, 0.5], [1, 4], num_samples=3, batch_size=2)
    report = measure_samples(make_bundle(name), settings, out=tmp_path)
    found = [(each["alpha_0"], each["steps"]) for each in report["settings"]]
    expected = [(0.0, None), (0.5, 1), (0.5, 4)] if name == "esolm_a" else [(1.0, 1), (1.0, 4)]
    assert found == expected
    assert all(1 <= each["nfe"] <= 16 for each in report["settings"])
    assert (tmp_path / "pareto.png").is_file()


def test_frontier() -> None:
    points = [(1.0, 9.0), (2.0, 5.0), (3.0, 7.0), (4.0, 4.0), (4.0, 6.0)]
    assert pareto.frontier(points, smaller=True) == [0, 1, 3]
    assert pareto.frontier(points, smaller=False) == [0]


def test_quality_is_what_every_setting_has() -> None:
    one: dict[str, Any] = {"generative_perplexity": None, "mauve": 0.5, "entropy": 1.0}
    assert pareto.quality_of([one])[0] == "mauve"
    assert pareto.quality_of([one, {**one, "mauve": None}])[0] == "entropy"


def test_mauve_says_what_is_missing(
    make_bundle: Callable[[str], Path], judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mauve_score, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'esolm\[mauve\]'"):
        measure_samples(make_bundle("esolm_b"), SampleSettings(), featuriser=judge)
    monkeypatch.setattr(mauve_score, "find_spec", lambda _: True)
    with pytest.raises(ConfigError, match="needs a DATASET"):
        measure_samples(make_bundle("esolm_b"), SampleSettings(), featuriser=judge)


def test_mauve(make_bundle: Callable[[str], Path], judge: Path, dataset: Path) -> None:
    pytest.importorskip("mauve", reason="the optional extra mauve-text is not installed")
    report = measure_samples(
        make_bundle("esolm_b"),
        SampleSettings(num_samples=8),
        featuriser=judge,
        references=dataset,
    )
    assert 0 < report["settings"][0]["mauve"] <= 1
