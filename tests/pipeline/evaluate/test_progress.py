"""Progress of what takes long with a trained network: on stderr, and never in the output."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esolm.data_prep import progress
from esolm.pipeline.evaluate.likelihood import Settings, measure
from esolm.pipeline.evaluate.rows import dataset_rows
from esolm.pipeline.evaluate.sampling import SampleSettings, measure_samples
from esolm.pipeline.evaluate.subject import open_subject
from esolm.pipeline.parallel.bootstrap import ProcessInfo
from tests.terminal import run_at_terminal

Maker = Callable[[str], Path]
Errors = pytest.CaptureFixture[str]


def test_written_and_judged_samples_are_counted(
    make_bundle: Maker,
    judge: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Errors,
) -> None:
    """Two settings of five samples, in batches of two, each of them written and then judged."""
    bundle = make_bundle("esolm_b")
    settings = SampleSettings(alphas=[0.0, 1.0], num_samples=5, batch_size=2, length=8)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0001)
    report = measure_samples(bundle, settings, judge)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("samples: ")]
    assert len(report["settings"]) == 2
    assert lines[-1].startswith("samples: 20/20, ")
    assert len(lines) > 2


def test_orders_are_counted_within_a_chunk(
    make_run: Maker, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: Errors
) -> None:
    """Two chunks of a row; each has three orders and the rest of its passes."""
    subject = open_subject(make_run("esolm_a"), None, torch.device("cpu"))
    rows = dataset_rows(dataset, "valid", subject, None, 2)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    settings = Settings(num_draws=1, num_orders=3, tokens_per_pass=1)
    measure(subject, subject.objective, rows, settings, ProcessInfo(0, 1, 0))
    counted = [line.split(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert counted == [f"evaluate: {number}/8" for number in range(1, 9)]


@pytest.mark.check
def test_evaluate_at_a_terminal(make_run: Maker, dataset: Path) -> None:
    arguments = ["--samples-limit", "4", "--orders", "2", "--json"]
    run = str(make_run("esolm_a"))
    code, output, errors = run_at_terminal("-m", "esolm", "evaluate", run, str(dataset), *arguments)
    assert code == 0, errors
    assert json.loads(output)["orders"]["k"] == 2
    assert f"read {run}"[:40] in errors
    assert "evaluate" in errors


@pytest.mark.check
def test_sample_and_export_at_a_terminal(make_run: Maker, tmp_path: Path) -> None:
    run = str(make_run("esolm_b"))
    code, output, errors = run_at_terminal("-m", "esolm", "sample", run, "--num-samples", "1")
    assert code == 0, errors
    assert output.startswith("--- sample 1 of 1, step 7\n")
    assert output.splitlines()[-1].endswith("forward passes (NFE)")
    assert "forward passes" in errors
    bundle = str(tmp_path / "bundle")
    code, output, errors = run_at_terminal("-m", "esolm", "export", run, "--out", bundle)
    assert code == 0, errors
    assert output.startswith(f"{bundle}: ema weights of step 7")
    assert "gate: " not in output
    for part in (
        "read the weights", "fold and write the bundle", "gate: coverage",
        "gate: reload in a fresh process", "checksums of the bundle",
    ):  # fmt: skip
        assert part in errors, part
