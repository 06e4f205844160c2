"""`esolm evaluate` as typed: text and JSON, several processes, refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import read_manifest
from esolm.pipeline.checkpoint import commit
from esolm.pipeline.cli.evaluate_options import arguments_of
from esolm.pipeline.cli.main import app
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.export import gate
from esolm.pipeline.export.export import export
from tests.processes import run_python


def run(*arguments: object) -> str:
    shown = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if shown.exception and not isinstance(shown.exception, SystemExit):
        raise shown.exception
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def test_text(make_run: Callable[[str], Path], dataset: Path) -> None:
    text = run(make_run("esolm_b"), dataset, "--samples-limit", 6, "--orders", 2, "--draws", 2)
    for part in (
        "6 rows of 16 tokens", "bound (NELBO)", "diffusion", "sequential", "exact, left to right",
        "bound of 2 orders (alpha_0 0.5)", "standard error of the bound", "0.9-1.0",
    ):  # fmt: skip
        assert part in text, text
    assert "perplexity" in run(make_run("ar"), dataset, "--samples-limit", 3)


def test_the_likelihood_as_published(make_run: Callable[[str], Path], dataset: Path) -> None:
    arguments = [make_run("esolm_a"), dataset, "--samples-limit", 3, "--orders", 2, "--json"]
    own, published = (
        json.loads(run(*arguments, "--orders-as", value))["orders"]
        for value in ("decoder", "published")
    )
    assert (own["as"], published["as"]) == ("decoder", "published")
    assert own["single"] != published["single"]
    assert json.loads(run(*arguments))["orders"] == own


@pytest.mark.check
@pytest.mark.dist
def test_any_number_of_processes_gives_the_same(
    make_run: Callable[[str], Path], dataset: Path
) -> None:
    arguments = [
        str(make_run("esolm_b")), str(dataset), "--samples-limit", "9", "--orders", "2",
        "--draws", "2", "--tokens-per-pass", "64", "--json",
    ]  # fmt: skip
    alone = json.loads(run(*arguments))
    finished = run_python("-m", "esolm", "evaluate", *arguments, "--ranks", "2", timeout=120)
    assert finished.returncode == 0, finished.stderr[-3000:]
    together = json.loads(finished.stdout)
    assert together.keys() == alone.keys()
    for key in ("nelbo", "left_to_right"):
        for name, value in alone[key].items():
            assert together[key][name] == pytest.approx(value, rel=1e-7), (key, name)
    assert together["data"] == alone["data"]


def test_rows_are_packed_as_in_training(
    make_run: Callable[[str], Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint and of its bundle; one that does not say was trained on plain rows."""
    run_path = tmp_path / "run"
    shutil.copytree(make_run("mdlm"), run_path)
    [step] = (run_path / "checkpoints").glob("step_*")
    manifest = commit.read_manifest(step)
    staging = commit.begin(run_path / "checkpoints", 8)
    for name in manifest.files:
        shutil.copy(step / name, staging / name)
    state = {**manifest.run, "step": 8, "data": {"packing": "wrapped"}}
    commit.commit(staging, commit.CheckpointManifest(8, manifest.files, state))
    monkeypatch.setattr(gate, "check_reload", lambda *_: ({}, {}))
    export(run_path, tmp_path / "bundle", dtype="fp32")
    num_tokens = read_manifest(dataset).num_tokens("valid")

    assert "(valid, wrapped): " in run(run_path, dataset, "--draws", 1)

    def rows_of(network: Path, *options: object) -> int:
        report = json.loads(run(network, dataset, "--draws", 1, "--json", *options))
        found: int = report["data"]["rows"]
        return found

    assert num_tokens // 14 != num_tokens // 16
    assert rows_of(make_run("mdlm")) == num_tokens // 16
    for network in (run_path, tmp_path / "bundle"):
        assert rows_of(network) == num_tokens // 14
    assert rows_of(run_path, "--packing", "continuous") == num_tokens // 16
    with pytest.raises(DataError, match="esolm prep pack"):
        run(run_path, dataset, "--packing", "best_fit")


def test_another_alpha_0(make_run: Callable[[str], Path], dataset: Path) -> None:
    report = json.loads(
        run(make_run("esolm_b"), dataset, "--samples-limit", 4, "--alpha-0", 0, "--json")
    )
    assert report["nelbo"]["exact"]
    exact = report["left_to_right"]["nats_per_token"]
    assert report["nelbo"]["nats_per_token"] == pytest.approx(exact, rel=1e-6)


def test_suite(make_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "ptb.valid.txt").write_text("ba be bin bor bus ca ce cin da de\n" * 20)
    text = run(make_bundle("esolm_b"), "--suite", "ptb", "--files", tmp_path, "--draws", 2)
    assert "Penn Treebank (valid)" in text


def test_samples(make_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    text = run(
        make_bundle("esolm_b"), "--samples", "--alpha-0", "0,1", "--steps", "2,4",
        "--num-samples", 2, "--out", out,
    )  # fmt: skip
    assert str(out / "pareto.png") in text
    assert len(text.splitlines()) >= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a DATASET or a --suite"),
        (["data", "--suite", "ptb"], "either a DATASET or a --suite"),
        (["data", "--alpha-0", "0,1"], "takes a list only with --samples"),
        (["data", "--alpha-0", "half"], "--alpha-0 is 'half'"),
        (["--samples", "--steps", "4,x"], "--steps is '4,x'"),
        (["--samples", "--ranks", "2", "--orders", "4"], "--orders, --ranks means nothing with"),
        (["--samples", "--tokenizer", "tok", "--weights", "raw"], "--weights, --tokenizer means"),
        (["--samples", "--suite", "ptb", "--files", "f"], "--suite, --files means nothing with"),
        (["data", "--samples"], r"dataset \(a DATASET\) goes with --featuriser"),
        (["--samples", "--split", "train"], "--split goes with a DATASET"),
        (["data", "--length", "8", "--out", "o"], "--length, --out goes with --samples"),
        (["data", "--judge", "j", "--num-samples", "2"], "--num-samples, --judge goes with"),
        (["data", "--files", "f"], "--files goes with --suite"),
        (["data", "--orders-as", "published"], "--orders-as goes with --orders"),
        (["data", "--samples", "--orders-as", "published"], "--orders-as means nothing with"),
        (["--suite", "ptb", "--split", "train"], "--split goes with a DATASET"),
        (["data", "--clip-search", "--orders", "2"], "--orders means nothing with --clip-search"),
        (["data", "--seq-len", "0"], "--seq-len is 0"),
    ],
)
def test_refusals(arguments: list[str], message: str, make_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=message):
        run(make_bundle("esolm_b"), *arguments)


def test_samples_are_written_by_one_process(
    make_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun and srun too, where every rank would repeat the sweep."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="work of one process"):
        run(make_bundle("esolm_b"), "--samples")


def test_the_command_line_is_handed_on_to_the_ranks() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, click.Group | typer.core.TyperGroup)
    evaluate = command.commands["evaluate"]
    given = ["net", "data", "--draws", "8", "--json", "--weights", "raw", "--ranks", "2"]
    context = evaluate.make_context("evaluate", list(given))
    handed = arguments_of(context, without="ranks")
    assert sorted(handed) == sorted(given[:-2])
    assert handed[:2] == ["net", "data"]
