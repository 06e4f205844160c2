"""The range of t under which a BD3-LM's loss varies least: against a closed form, and as typed."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from esolm.model.inputs import NetworkInput
from esolm.model.objectives import BD3LM
from esolm.pipeline.cli.main import app
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.clip_search import candidates, search
from esolm.pipeline.evaluate.likelihood import Settings
from esolm.pipeline.evaluate.rows import dataset_rows
from esolm.pipeline.evaluate.subject import open_subject
from esolm.pipeline.parallel.bootstrap import ProcessInfo

ALONE = ProcessInfo(0, 1, 0)


def test_candidates() -> None:
    found = candidates()
    assert found[-1] == (0.001, 1.0)
    assert (0.45, 0.95) in found
    assert (0.3, 0.8) in found
    assert len(found) == len(set(found)) == 11 + 9 + 7 + 5 + 3 + 1
    assert all(BD3LM(3, 4, low, high).problems(16) == [] for low, high in found)


def test_variance_of_a_network_that_knows_nothing(
    make_run: Callable[[str], Path], dataset: Path
) -> None:
    """Every token costs c = log V. In a block of S the loss per token is c n / (S t), n of
    Binomial(S, t): with t uniform on [a, b] its variance is c^2 / S (log(b / a) / (b - a) - 1).
    """
    subject = open_subject(make_run("bd3lm"), None, torch.device("cpu"))

    def uniform(inputs: NetworkInput) -> Tensor:
        batch, fed = inputs.tokens.shape
        return torch.zeros(batch, fed // 2, subject.vocab_size)

    subject = replace(subject, logits=uniform)
    size = 8
    rows = dataset_rows(dataset, "valid", subject, size, 60)
    objective = BD3LM(subject.mask_id, size, keep_first=False)
    report = search(subject, objective, rows, Settings(num_draws=40), ALONE)
    assert report is not None
    cost = math.log(subject.vocab_size)
    checked = 0
    for each in report["ranges"]:
        low, high = each["t_min"], each["t_max"]
        if low < 0.2:
            continue  # heavy tails: an estimate would need many more draws
        expected = cost**2 / size * (math.log(high / low) / (high - low) - 1)
        assert each["variance"] == pytest.approx(expected, rel=0.2)
        assert each["loss"] == pytest.approx(cost, rel=0.05)
        checked += 1
    assert checked > 10
    assert (report["ranges"][0]["t_min"], report["ranges"][0]["t_max"]) == (0.5, 1.0)
    variances = [each["variance"] for each in report["ranges"]]
    assert variances == sorted(variances)
    assert np.isfinite(variances).all()


def test_command(make_run: Callable[[str], Path], dataset: Path) -> None:
    arguments = ["evaluate", str(make_run("bd3lm")), str(dataset), "--clip-search"]
    options = ["--samples-limit", "3", "--draws", "2"]
    shown = CliRunner().invoke(app, [*arguments, *options])
    assert shown.exit_code == 0, shown.output
    assert "the loss varies least with objective.t_min=" in shown.stdout
    report = json.loads(CliRunner().invoke(app, [*arguments, *options, "--json"]).stdout)
    assert len(report["ranges"]) == len(candidates())


def test_refusals(make_run: Callable[[str], Path], dataset: Path) -> None:
    for name, draws, message in (("mdlm", 4, "trained as a BD3-LM"), ("bd3lm", 1, "at least 2")):
        subject = open_subject(make_run(name), None, torch.device("cpu"))
        rows = dataset_rows(dataset, "valid", subject, None, 2)
        with pytest.raises(ConfigError, match=message):
            search(subject, subject.objective, rows, Settings(num_draws=draws), ALONE)
