"""What a submit refuses, lists or needs no more because of the run and the data that are there."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.slurm.existing import access_problems
from esolm.pipeline.slurm.submit import Submission, prepare
from tests.data_prep.corpus import make_job, make_tokenizer, run_job, write_jsonl
from tests.processes import run_python
from tests.slurm.runs import write_profile, write_run

NOBODY = 65534


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esolm.pipeline.slurm.client.why_unavailable", lambda: "no Slurm here")


def prepared(config: Path, stages: str, *overrides: str) -> Submission:
    profile = write_profile(config.parent)
    return prepare(config, list(overrides), str(profile), stages.split(","))


def refused(config: Path, stages: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        prepared(config, stages, *overrides)
    return str(error.value)


def test_a_run_that_has_begun(dataset: Path, tmp_path: Path) -> None:
    """Another network is refused on the spot; what may change is listed."""
    config = write_run(tmp_path, dataset, steps=2)
    assert prepared(config, "train").notes[:-1] == []
    trained = run_python("-m", "esolm", "train", str(config))
    assert trained.returncode == 0, trained.stderr
    problems = refused(config, "train", "train.steps=4", "model.hidden_size=128")
    assert "model.hidden_size is 64 in the checkpoint, 128 here" in problems
    problems = refused(config, "train", "train.steps=4", "train.seq_len=16")
    assert "seq_len: 32 in the checkpoint, 16 here" in problems
    changes = ("train.steps=4", "optimizer.lr=1.0e-4", "train.global_batch_size=4")
    notes = prepared(config, "train", *changes, "slurm.nodes=2").notes
    listed = [note for note in notes if note.startswith("changed since the last start: ")]
    assert [note.split(": ", 1)[1] for note in listed] == [
        "train.steps: 2 before, 4 now",
        "train.global_batch_size: 8 before, 4 now",
        "optimizer.lr: 0.001 before, 0.0001 now",
    ]


def test_a_split_that_evaluate_would_find_empty(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    source = write_jsonl(tmp_path / "text.jsonl", 20)
    run_job(make_job(source, tokenizer, tmp_path / "data", valid_fraction=0.0), tokenizer)
    config = write_run(tmp_path, tmp_path / "data", steps=4)
    problems = refused(config, "train,evaluate")
    assert "stage evaluate: " in problems
    assert "holds no tokens of split 'valid'" in problems
    assert list(prepared(config, "train,export").scripts) == ["train", "export"]


def test_a_finished_dataset_needs_no_inputs(dataset: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, dataset, steps=4)
    submission = prepared(config, "prep,train,evaluate,export")
    assert list(submission.scripts) == ["train", "evaluate", "export"]
    assert f"prep: {dataset} is finished and is skipped" in submission.notes
    without = write_run(tmp_path / "without", tmp_path / "none", steps=4)
    assert "prep.inputs names no text" in refused(without, "prep,train")


@pytest.mark.parametrize("nodes", ["1", "1-2"])
def test_the_script_of_one_node_passes_shellcheck(
    nodes: str, dataset: Path, tmp_path: Path
) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    script = prepared(
        write_run(tmp_path, dataset, steps=4), "train", f"slurm.nodes={nodes}"
    ).scripts["train"]
    checked = subprocess.run(
        ["shellcheck", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_a_run_of_another_user() -> None:
    """In a fork, because root may write everywhere."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "run" / "slurm").mkdir(parents=True)
        said = folder / "said"
        said.touch()
        child = os.fork()
        if child == 0:
            with said.open("w") as file:
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                file.write(str(access_problems(folder / "run")))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        run = folder / "run"
        assert (
            f"run.dir {run}: you may not write to {run}, which belongs to root" in said.read_text()
        )
    assert access_problems(folder / "gone" / "run") == []
