"""A run that starts from the weights of another begins where that one ended."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.checkpoint import commit
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.export.fold import fold
from esolm.pipeline.export.manifest import write_manifest
from esolm.pipeline.export.writer import bundle_config, load_model, write_bundle
from tests.dist.ranks import rank_environment
from tests.pipeline.conftest import RecordedRun

TWO_RANKS = {
    "tp2": ["parallel.tp=2"],
    "pp2": ["parallel.pp=2"],
    "cp2": ["parallel.cp=2"],
    "dp2z1": ["parallel.zero=1"],
    "dp2z3": ["parallel.zero=3", "train.precision=bf16"],
}


def run_all(settings: list[list[str]], num_ranks: int) -> str:
    """What rank 0 prints of several trainings."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.pipeline.train.several_runs"]
    ranks = [
        subprocess.Popen(
            [*command, repr(settings)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in rank_environment(num_ranks)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, outputs[0][-4000:]
    return outputs[0]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def validations(run: Path) -> list[tuple[float, float]]:
    return [(x["valid_loss"], x["valid_loss_ema"]) for x in lines(run) if "valid_loss" in x]


@pytest.fixture(scope="module")
def bundle(recorded_run: RecordedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's averaged weights as `esolm export` writes them, without the gate."""
    directory = tmp_path_factory.mktemp("bundle")
    reader = CheckpointReader(recorded_run.path)
    tokenizer = load_tokenizer(reader.tokenizer_path)
    parameters = fold(reader.tensors("ema"), reader.model)
    model = load_model(bundle_config(reader, tokenizer), parameters)
    write_bundle(directory, reader, model, tokenizer)
    assert tokenizer is not None
    record = {"seq_len": reader.seq_len, "weights": "ema", "tokenizer": tokenizer.info.fingerprint}
    write_manifest(directory, record)
    return directory


@pytest.fixture(scope="module")
def unnamed(recorded_run: RecordedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's newest checkpoint as an import without a tokenizer writes one."""
    staging = tmp_path_factory.mktemp("unnamed") / "step_00000012.tmp"
    shutil.copytree(CheckpointReader(recorded_run.path).directory, staging)
    manifest = commit.read_manifest(staging)
    return commit.commit(staging, replace(manifest, run={**manifest.run, "tokenizer": ""}))


@pytest.fixture(scope="module")
def started(
    recorded_run: RecordedRun,
    bundle: Path,
    unnamed: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Per name, a run of two steps that started from the recorded run; `log` of the single ones."""
    folder = tmp_path_factory.mktemp("started")
    config, origin = str(recorded_run.config), f"train.init_from={recorded_run.path}"

    def start(name: str, *overrides: str) -> list[str]:
        run = ["train.steps=2", "train.profile_steps=9-9", f"run.dir={folder / name}"]
        return [config, *run, "checkpoint.every_steps=1", *overrides]

    adaln = "model.adaln=false"
    log = run_all(
        [
            start("ema", origin),
            start("raw", f"train.init_from={unnamed}", "train.init_weights=raw"),
            start("bundle", f"train.init_from={bundle}"),
            start("longer", origin, "train.seq_len=48", "model.rope_base=20000"),
            start("other", origin, "model.hidden_size=32", adaln),
            start("unlike", f"train.init_from={bundle}", adaln),
            start("ema", "train.init_from=/it/is/gone", "train.steps=3"),
            start("new", "train.init_from=/it/is/gone"),
        ],
        1,
    )
    (folder / "log").write_text(log)
    run_all([start(name, origin, *layout) for name, layout in TWO_RANKS.items()], 2)
    return folder


@pytest.mark.dist
@pytest.mark.check
def test_it_begins_where_the_other_ended(recorded_run: RecordedRun, started: Path) -> None:
    raw, averaged = validations(recorded_run.path)[-1]
    assert abs(raw - averaged) > 1e-3
    for name, expected in {"ema": averaged, "raw": raw, "bundle": averaged}.items():
        (weights, average), *_ = validations(started / name)
        assert weights == pytest.approx(expected, rel=1e-5), name
        assert average == weights, f"{name}: the average starts at the weights"


@pytest.mark.dist
@pytest.mark.check
def test_it_is_the_same_in_every_layout(started: Path) -> None:
    expected = [x["loss"] for x in lines(started / "ema") if "loss" in x][:2]
    for name in TWO_RANKS:
        tolerance = 1e-2 if name == "dp2z3" else 1e-5
        losses = [x["loss"] for x in lines(started / name) if "loss" in x]
        assert losses == pytest.approx(expected, rel=tolerance), name


@pytest.mark.dist
@pytest.mark.check
def test_only_the_weights_are_taken(started: Path) -> None:
    """Step 0, no updates, and after one of them moments that a young optimizer has."""
    reader = CheckpointReader(started / "ema" / "checkpoints" / "step_00000001")
    run = reader.manifest.run
    assert (run["step"], run["updates"], run["consumed_samples"]) == (1, 1, 8)
    first, second = reader.tensors("exp_avg"), reader.tensors("exp_avg_sq")
    name = "blocks.0.mlp.up.weight"
    # After one update both are multiples of the gradient and of its square.
    ratio = first[name].square() / second[name]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 10.0), rtol=1e-3, atol=0)


@pytest.mark.dist
@pytest.mark.check
def test_what_may_differ_is_said_and_what_may_not_is_refused(started: Path) -> None:
    log = (started / "log").read_text()
    assert "train.seq_len: trained with 32, now 48" in log
    assert "model.rope_base: trained with 10000.0, now 20000.0" in log
    assert "model.hidden_size is 64 in" in log
    assert "any other bundle one without" in log
    assert "resumed from" in log, "a run that has a checkpoint goes on from it"
    assert log.count("ended with 0") == 5
    assert log.count("refused: train.init_from") == 3
    assert "there is no directory /it/is/gone" in log
