"""Likelihood reports: against the model's own likelihood code, and whoever computes them."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esolm.model.likelihood import (
    draw_orders,
    draw_prefix_lengths,
    importance_bound,
    left_to_right_log_likelihood,
    nelbo,
    order_log_likelihood,
    orders_log_likelihood,
)
from esolm.model.objectives import BD3LM, MDLM, AutoRegressive, EsoLM, Objective, SampleKeys
from esolm.model.objectives.noise import elbo_weight
from esolm.pipeline.errors import CheckpointError, ConfigError
from esolm.pipeline.evaluate.likelihood import Settings, measure
from esolm.pipeline.evaluate.passes import Schedule
from esolm.pipeline.evaluate.rows import DatasetRows, dataset_rows
from esolm.pipeline.evaluate.show import likelihood_text
from esolm.pipeline.evaluate.subject import Subject, open_subject, with_alpha_0
from esolm.pipeline.parallel.bootstrap import ProcessInfo
from tests.pipeline.evaluate.conftest import OBJECTIVES, SEQ_LEN

CPU = torch.device("cpu")
ALONE = ProcessInfo(0, 1, 0)
ROWS = 9


def open_both(run: Path, dataset: Path, rows: int = ROWS) -> tuple[Subject, DatasetRows]:
    subject = open_subject(run, None, CPU)
    return subject, dataset_rows(dataset, "valid", subject, None, rows)


def numbers(report: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a report by its place."""
    entries = report.items() if isinstance(report, dict) else enumerate(report)
    for key, value in entries:
        if isinstance(value, dict | list):
            yield from numbers(value, f"{path}/{key}")
        elif isinstance(value, int | float):
            yield f"{path}/{key}", float(value)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_bundle_measures_as_its_checkpoint(
    name: str, make_run: Callable[[str], Path], make_bundle: Callable[[str], Path], dataset: Path
) -> None:
    settings = Settings(num_draws=2, num_orders=3 if name.startswith("esolm") else 0)
    reports = []
    for path in (make_run(name), make_bundle(name)):
        subject, rows = open_both(path, dataset)
        report = measure(subject, subject.objective, rows, settings, ALONE)
        assert report is not None
        reports.append(report)
    checkpoint, bundle = (dict(numbers(report)) for report in reports)
    assert checkpoint.keys() == bundle.keys()
    for key, value in checkpoint.items():
        assert bundle[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    assert reports[0]["network"]["kind"], reports[1]["network"]["kind"] == ("checkpoint", "bundle")


@pytest.mark.parametrize(("name", "alpha_0"), [("esolm_b", 0.5), ("esolm_a", 0.25)])
def test_exact_likelihoods_are_those_of_the_model(
    name: str, alpha_0: float, make_run: Callable[[str], Path], dataset: Path
) -> None:
    subject, rows = open_both(make_run(name), dataset)
    report = measure(subject, subject.objective, rows, Settings(2, 5, seed=3), ALONE)
    assert report is not None
    tokens = torch.from_numpy(rows.read(np.arange(ROWS)))
    natural = np.tile(np.arange(SEQ_LEN), (ROWS, 1))
    total = ROWS * SEQ_LEN
    assert report["data"]["tokens"] == total
    exact = -order_log_likelihood(subject.logits, tokens, natural, subject.mask_id).sum() / total
    assert report["left_to_right"]["nats_per_token"] == pytest.approx(float(exact), rel=1e-6)
    draw = (3, np.arange(ROWS), SEQ_LEN, alpha_0, 5)
    orders, prefixes = draw_orders(*draw), draw_prefix_lengths(*draw)
    log_p = orders_log_likelihood(
        subject.logits, tokens, orders, subject.mask_id, prefixes if name == "esolm_a" else None
    )
    found = report["orders"]
    assert report["note"] is None
    assert (found["k"], found["alpha_0"]) == (5, alpha_0)
    assert found["single"]["nats_per_token"] == pytest.approx(
        -float(log_p.mean()) / SEQ_LEN, rel=1e-6
    )
    bound = float(importance_bound(log_p).sum()) / total
    assert found["importance_weighted"]["nats_per_token"] == pytest.approx(bound, rel=1e-6)
    assert bound < found["single"]["nats_per_token"]


@pytest.mark.parametrize("name", ["mdlm", "bd3lm"])
def test_why_there_is_no_exact_likelihood(
    name: str, make_run: Callable[[str], Path], dataset: Path
) -> None:
    subject, rows = open_both(make_run(name), dataset, 2)
    report = measure(subject, subject.objective, rows, Settings(2), ALONE)
    assert report is not None
    assert report["left_to_right"] is None
    assert report["note"].startswith("no exact likelihood: attention")
    assert report["note"] in likelihood_text(report)


@pytest.mark.parametrize("name", ["ar", "ar_bos"])
def test_autoregressive_perplexity(
    name: str, make_run: Callable[[str], Path], dataset: Path
) -> None:
    subject, rows = open_both(make_run(name), dataset)
    report = measure(subject, subject.objective, rows, Settings(), ALONE)
    assert report is not None
    tokens = torch.from_numpy(rows.read(np.arange(ROWS)))
    log_p = left_to_right_log_likelihood(subject.logits, subject.objective, tokens)  # type: ignore[arg-type]
    predicted = ROWS * (SEQ_LEN - (name == "ar"))
    assert log_p.numel() == predicted == report["data"]["tokens"]
    loss = -float(log_p.mean())
    bound = report["nelbo"]
    assert bound["exact"]
    assert bound["standard_error"] == 0.0
    assert bound["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert bound["bits_per_token"] == pytest.approx(loss / math.log(2), rel=1e-6)
    given = SEQ_LEN - predicted // ROWS
    num_bytes = len(rows.tokenizer.decode(tokens[:, given:].flatten().tolist()).encode())
    bits = loss * predicted / math.log(2)
    assert report["data"]["bytes"] == num_bytes
    assert bound["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-6)
    assert report["t_buckets"] == []


@pytest.mark.parametrize("name", ["ar", "ar_bos"])
def test_the_error_over_rows_is_that_of_the_mean_of_their_losses(
    name: str, make_run: Callable[[str], Path], dataset: Path
) -> None:
    """Rows of equal length: the loss per token is the mean of n losses, each with its spread."""
    subject, rows = open_both(make_run(name), dataset)
    report = measure(subject, subject.objective, rows, Settings(), ALONE)
    assert report is not None
    tokens = torch.from_numpy(rows.read(np.arange(ROWS)))
    log_p = left_to_right_log_likelihood(subject.logits, subject.objective, tokens)  # type: ignore[arg-type]
    losses = [-float(row.mean()) for row in log_p.double()]
    mean = sum(losses) / ROWS
    variance = sum((loss - mean) ** 2 for loss in losses) / (ROWS - 1)
    found = report["nelbo"]
    assert found["nats_per_token"] == pytest.approx(mean, rel=1e-6)
    assert found["standard_error_over_rows"] == pytest.approx(math.sqrt(variance / ROWS), rel=1e-4)


@pytest.mark.parametrize("name", ["esolm_b", "esolm_a", "mdlm", "bd3lm"])
def test_the_bound_has_the_expectation_of_the_models_own(
    name: str, make_run: Callable[[str], Path], dataset: Path
) -> None:
    """Two estimators with different draws, stratified differently, within their errors."""
    subject, rows = open_both(make_run(name), dataset)
    report = measure(subject, subject.objective, rows, Settings(num_draws=60), ALONE)
    assert report is not None
    bound = report["nelbo"]
    tokens = torch.from_numpy(rows.read(np.arange(ROWS)))
    predicted = subject.objective.predicted_tokens(SEQ_LEN)
    values = torch.stack([
        torch.stack(list(nelbo(subject.logits, subject.objective, tokens, np.arange(ROWS), seed, 8)
                         .values())).sum(0).mean() / predicted
        for seed in range(12)
    ])  # fmt: skip
    error = math.hypot(float(values.std()) / 12**0.5, bound["standard_error"])
    assert abs(bound["nats_per_token"] - float(values.mean())) < 4 * error
    assert 0 < bound["standard_error"] < 0.1 * bound["nats_per_token"]


@pytest.mark.parametrize("name", ["esolm_b", "mdlm", "bd3lm"])
def test_buckets_and_phases_add_up(
    name: str, make_run: Callable[[str], Path], dataset: Path
) -> None:
    subject, rows = open_both(make_run(name), dataset)
    report = measure(subject, subject.objective, rows, Settings(num_draws=3), ALONE)
    assert report is not None
    phases = {key: value["nats_per_token"] for key, value in report["phases"].items()}
    assert sum(phases.values()) == pytest.approx(report["nelbo"]["nats_per_token"])
    buckets = report["t_buckets"]
    tokens = sum(each["tokens"] for each in buckets)
    assert tokens == 3 * report["data"]["tokens"]
    total = sum(each["bound_nats_per_token"] * each["tokens"] for each in buckets)
    assert total / tokens == pytest.approx(phases["diffusion"])
    shares = [each["masked"] / each["tokens"] for each in buckets]
    assert shares[0] < shares[-1], "more is masked late in time"


def test_nothing_depends_on_the_size_of_chunks(
    make_run: Callable[[str], Path], dataset: Path
) -> None:
    subject, rows = open_both(make_run("esolm_b"), dataset)
    reports = [
        dict(numbers(measure(subject, subject.objective, rows, Settings(2, 2, 0, size), ALONE)))
        for size in (1, 100, 10_000)
    ]
    for report in reports[1:]:
        for key, value in reports[0].items():
            assert report[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize(
    ("objective", "num_rows"),
    [(MDLM(3), 7), (EsoLM(3, 0.5, 0.5), 7), (EsoLM(3, 0.5, 0.3), 7), (BD3LM(3, 4), 6)],
)
def test_t_is_stratified_over_rows_and_turned_in_each_draw(
    objective: Objective, num_rows: int
) -> None:
    schedule = Schedule(objective, num_rows, 16, seed=5)
    slots = len(objective.terms(schedule.global_batch_size)["diffusion"])
    off_by = int(slots % num_rows > 0)
    index = np.arange(num_rows)
    turns = set()
    for draw in range(20):
        keys = schedule.keys("diffusion", draw, index)
        times = objective.corrupt(torch.zeros(num_rows, 16).long(), keys)[1].times
        assert times is not None
        strata = np.floor((times[:, 0] - 0.001) / 0.999 * num_rows).astype(int)
        # Where the term's slots are no multiple of the rows, a stratum may reach into the next.
        assert np.abs(np.sort(strata) - index).max() <= off_by
        turns.add(int(strata[0]))
        alone = schedule.keys("diffusion", draw, index[3:4])
        assert alone.slot[0] == keys.slot[3]
    assert len(turns) > num_rows // 2
    samples = [schedule.keys(t, d, index).sample_index for t in objective.terms(64) for d in (0, 1)]
    assert len(np.unique(samples)) == len(samples) * num_rows


def test_another_share_of_diffusion() -> None:
    trained = EsoLM(3, 0.5, 0.5)
    assert with_alpha_0(trained, None) is trained
    assert with_alpha_0(trained, 0.0) == EsoLM(3, 0.0, 0.0)
    assert with_alpha_0(trained, 0.125) == EsoLM(3, 0.125, 0.5)
    with pytest.raises(ConfigError, match="goes with networks trained as an Eso-LM"):
        with_alpha_0(MDLM(3), 0.5)


def test_weights(
    make_run: Callable[[str], Path], make_bundle: Callable[[str], Path], dataset: Path
) -> None:
    losses = {}
    for weights in ("ema", "raw"):
        subject = open_subject(make_run("esolm_b"), weights, CPU)
        rows = dataset_rows(dataset, "valid", subject, None, 2)
        report = measure(subject, subject.objective, rows, Settings(2), ALONE)
        assert report is not None
        losses[weights] = report["nelbo"]["nats_per_token"]
    assert losses["ema"] != pytest.approx(losses["raw"])
    with pytest.raises(ConfigError, match="holds ema weights, not raw"):
        open_subject(make_bundle("esolm_b"), "raw", CPU)


def test_bad_requests(make_run: Callable[[str], Path], dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_subject(tmp_path / "none", None, CPU)
    subject, rows = open_both(make_run("mdlm"), dataset)
    with pytest.raises(ConfigError) as raised:
        measure(subject, subject.objective, rows, Settings(0, 2, -1), ALONE)
    assert len(raised.value.problems) == 3
    subject, _ = open_both(make_run("bd3lm"), dataset)
    uneven = dataset_rows(dataset, "valid", subject, 10, None)
    with pytest.raises(ConfigError, match="block_size"):
        measure(subject, subject.objective, uneven, Settings(), ALONE)
    other = dict(vars(subject), fingerprint="another")
    with pytest.raises(ConfigError, match="another vocabulary"):
        dataset_rows(dataset, "valid", Subject(**other), None, None)
    with pytest.raises(ConfigError, match="--samples-limit is 0"):
        dataset_rows(dataset, "valid", subject, None, 0)


def test_reports_are_json(make_run: Callable[[str], Path], dataset: Path) -> None:
    subject, rows = open_both(make_run("esolm_b"), dataset)
    report = measure(subject, subject.objective, rows, Settings(1, 0), ALONE)
    assert json.loads(json.dumps(report)) == report
    assert report is not None
    assert report["nelbo"]["standard_error"] is None
    assert report["orders"] is None


@pytest.mark.parametrize("objective", [MDLM(3), EsoLM(3, 0.25, 0.5), BD3LM(3, 4)])
def test_the_times_of_an_objective_are_those_of_its_weights(objective: Objective) -> None:
    objective, slots = objective.for_validation(), np.arange(4)
    keys = SampleKeys(7, 20 + slots, slots, 8)
    _, targets = objective.corrupt(torch.arange(64).reshape(4, 16) % 3, keys)
    times = targets.times
    assert times is not None
    assert times.shape == (4, 16)
    if isinstance(objective, BD3LM):
        expected = 1.0 / times / (8 * 15)
    else:
        alpha_0, rows = (0.25, 4) if isinstance(objective, EsoLM) else (1.0, 8)
        expected = elbo_weight(times, alpha_0) / (rows * 16)
    masked = targets.weights > 0
    assert masked.any()
    torch.testing.assert_close(targets.weights[masked], torch.from_numpy(expected).float()[masked])


def test_a_term_without_noise_has_no_time() -> None:
    keys = SampleKeys(0, np.arange(2), np.array([6, 7]), 8)
    for objective in (EsoLM(3, 0.5, 0.5), AutoRegressive(None)):
        assert objective.corrupt(torch.zeros(2, 16).long(), keys)[1].times is None
