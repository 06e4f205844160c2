"""A run is complete where DONE and its checkpoints say so, and nothing changes in silence."""

from pathlib import Path

import pytest

from esolm.pipeline.checkpoint import commit
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.completion import changed_settings, is_complete
from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.sections import RunConfig
from tests.processes import ROOT

CONFIG = ROOT / "configs" / "run" / "demo.yaml"


def asking(steps: int, *overrides: str) -> RunConfig:
    return load_config(
        CONFIG, ["run.dir=unused", "data.path=unused", f"train.steps={steps}", *overrides]
    )


def run_at(path: Path, *steps: int) -> RunDirectory:
    directory = RunDirectory(path)
    for step in steps:
        staging = commit.begin(directory.checkpoints, step)
        commit.commit(staging, commit.CheckpointManifest(step, {}, {}))
    return directory


def test_a_run_is_complete_when_its_last_checkpoint_is_of_its_last_step(tmp_path: Path) -> None:
    directory = run_at(tmp_path, 10, 20)
    assert not is_complete(directory, asking(20)), "killed before DONE: the next start writes it"
    directory.finish(20)
    assert is_complete(directory, asking(20))
    assert not is_complete(directory, asking(21)), "more steps continue it"
    run_at(tmp_path, 30)
    assert not is_complete(directory, asking(40)), "and are resumed after a restart"


def test_fewer_steps_than_are_done_are_refused(tmp_path: Path) -> None:
    directory = run_at(tmp_path, 10, 20)
    refusal = r"train.steps is 15, but the run in .* has done 20 steps already"
    with pytest.raises(ConfigError, match=refusal):
        is_complete(directory, asking(15))
    directory.finish(20)
    with pytest.raises(ConfigError, match=refusal):
        is_complete(directory, asking(15))


@pytest.mark.parametrize(("steps", "found"), [((), "no checkpoint is there"), ((10,), "has 10")])
def test_a_done_of_another_run_is_refused(
    steps: tuple[int, ...], found: str, tmp_path: Path
) -> None:
    directory = run_at(tmp_path, *steps)
    directory.finish(20)
    for asked in (10, 20, 30):
        with pytest.raises(ConfigError, match=f"complete at step 20, but .*{found}.*Remove DONE"):
            is_complete(directory, asking(asked))


def test_checkpoints_at_a_mirror_or_set_aside_are_not_missed(tmp_path: Path) -> None:
    directory = run_at(tmp_path, 20)
    directory.finish(20)
    commit.set_aside(commit.step_directory(directory.checkpoints, 20))
    assert not is_complete(directory, asking(20)), "the start of the training says what is wrong"
    assert is_complete(directory, asking(20, "checkpoint.mirror=file:///elsewhere"))


def test_changed_settings_are_listed(dataset: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    first = load_config(CONFIG, [f"run.dir={tmp_path}", f"data.path={dataset}"])
    assert changed_settings(directory, first) == ([], []), "nothing came before"
    directory.describe(first, dataset / "tokenizer", {})
    assert changed_settings(directory, first) == ([], [])
    overrides = ["optimizer.lr=0.5", "train.global_batch_size=64", "parallel.pp=2"]
    second = load_config(CONFIG, [f"run.dir={tmp_path}", f"data.path={dataset}", *overrides])
    with_effect, without = changed_settings(directory, second)
    assert with_effect == [
        f"train.global_batch_size: {first.train.global_batch_size} before, 64 now",
        f"optimizer.lr: {first.optimizer.lr} before, 0.5 now",
    ]
    assert without == ["parallel.pp: 1 before, 2 now"]
