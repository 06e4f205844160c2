"""The example objective of `esolm.model.objectives.base`, installed as a package, in every command.

One new file trains, validates, evaluates, is replayed and planned. Its export is refused, because
it names no decoder.
"""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from esolm.model.objectives import base
from esolm.model.objectives.registry import GROUP
from tests.e2e.runs import losses, write_config
from tests.examples import source_of_example
from tests.processes import run_python

pytestmark = pytest.mark.dist


def install(folder: Path) -> None:
    """As pip lays a package out: its file, and what it says of itself."""
    (folder / "uniform_noise.py").write_text(source_of_example(base))
    about = folder / "uniform_noise-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: uniform-noise\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nuniform = uniform_noise:KIND\n")


@pytest.mark.check
def test_an_objective_in_one_file(dataset: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    install(package)
    run, config = tmp_path / "run", write_config(tmp_path, dataset, steps=6)
    train = ["train", str(config), "objective.name=uniform", "parallel.tp=1"]

    def esolm(*arguments: str, code: int = 0) -> CompletedProcess[str]:
        finished = run_python("-m", "esolm", *arguments, packages=(package,))
        assert finished.returncode == code, finished.stderr[-3000:]
        return finished

    esolm(*train, "train.valid_every_steps=3")
    steps = dict(losses(run))
    assert list(steps) == list(range(1, 7))
    assert steps[6] < steps[1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid_loss_diffusion" in line] == [0, 3, 6]

    evaluated = json.loads(esolm("evaluate", str(run), str(dataset), "--json").stdout)
    assert evaluated["note"].startswith("no exact likelihood")
    assert 0.0 < evaluated["nelbo"]["nats_per_token"] < 10.0
    assert evaluated["t_buckets"]

    replayed = json.loads(esolm("replay", str(run), "6", "--loss", "--json").stdout)
    assert sum(row["loss"] for row in replayed["rows"]) > 0.0
    assert all(len(row["t"]) == 1 for row in replayed["rows"])

    planned = json.loads(esolm("plan", str(config), "objective.name=uniform", "--json").stdout)
    assert planned

    refused = esolm("export", str(run), "--out", str(tmp_path / "bundle"), code=1).stderr
    assert "the objective 'uniform' names no decoder" in refused
    assert "Traceback" not in refused
    assert not (tmp_path / "bundle").exists()


def test_an_objective_that_is_not_installed_is_named(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, dataset)
    finished = run_python("-m", "esolm", "train", str(config), "objective.name=uniform")
    assert finished.returncode == 64
    assert "objective.name is 'uniform'; choose esolm, ar, mdlm or bd3lm" in finished.stderr
