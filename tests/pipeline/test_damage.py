"""Damage to any file of a run: nothing wrong is used, nothing whole is set aside, nothing ends in a
trace.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esolm.pipeline.checkpoint.checkpointer import Checkpointer
from esolm.pipeline.checkpoint.commit import DAMAGED, Retention
from esolm.pipeline.checkpoint.listing import damage_of, list_checkpoints
from esolm.pipeline.checkpoint.reader import CheckpointReader
from esolm.pipeline.cli.main import OF_THE_MACHINE
from esolm.pipeline.errors import EsolmError
from esolm.pipeline.parallel.fragments import STATES
from esolm.pipeline.parallel.single import single_process
from esolm.pipeline.run.completion import changed_settings, is_complete
from esolm.pipeline.run.config import load_config
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.history import History
from esolm.pipeline.watch.status import run_status
from tests.damages import DAMAGES
from tests.pipeline.conftest import RecordedRun

NEWEST, BEFORE = "step_00000012", "step_00000008"

pytestmark = pytest.mark.check


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def files_of(run: Path) -> list[Path]:
    """Every file with content, and of the checkpoints those of the newest. Locks hold nothing."""
    found = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
    files = [path.relative_to(run) for path in found if path.stat().st_size]
    return [f for f in files if f.parts[0] != "checkpoints" or f.parts[1] == NEWEST]


def resume_point(run: Path) -> str:
    """The name of the checkpoint that a resume would take."""
    single_process()
    found = Checkpointer(run / "checkpoints", Retention(3), False, lambda: None).newest()
    assert found is not None
    return found[0].name


def weights(path: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(path)
    return {f"{s} {n}": t for s in STATES for n, t in reader.tensors(s).items()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_checkpoint(
    damage: Callable[[Path], None], recorded_run: RecordedRun, tmp_path: Path
) -> None:
    whole = bytes_of(recorded_run.path / "checkpoints")
    expected = weights(recorded_run.path / "checkpoints" / BEFORE)
    for number, name in enumerate(files_of(recorded_run.path)):
        if name.parts[0] != "checkpoints":
            continue
        run = tmp_path / str(number)
        shutil.copytree(recorded_run.path, run)
        damage(run / name)
        checkpoint = run / "checkpoints" / NEWEST
        assert damage_of(checkpoint), name
        with pytest.raises(EsolmError):
            weights(checkpoint)
        unreadable = (run / name).is_dir()
        try:
            taken = resume_point(run)
        except EsolmError:
            taken = ""
        if taken == "":
            assert unreadable, name
            assert checkpoint.is_dir(), "what cannot be read may be whole"
            continue
        assert taken == BEFORE, name
        assert (run / "checkpoints" / f"{NEWEST}{DAMAGED}").is_dir()
        left = {k: v for k, v in bytes_of(run / "checkpoints").items() if NEWEST not in k}
        assert left == {k: v for k, v in whole.items() if NEWEST not in k}
        found = weights(run / "checkpoints" / taken)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        shutil.rmtree(run)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_anything_else_of_a_run(
    damage: Callable[[Path], None], recorded_run: RecordedRun, tmp_path: Path
) -> None:
    """Reading is right or refused in one message; no checkpoint is touched, whatever it is."""
    names = [name for name in files_of(recorded_run.path) if name.parts[0] != "checkpoints"]
    assert {"config.yaml", "DONE", "env.json", "metrics.jsonl", "starts.jsonl"} <= {
        name.name for name in names
    }
    config = load_config(recorded_run.config, [])
    checkpoints = bytes_of(recorded_run.path / "checkpoints")
    for number, name in enumerate(names):
        run = tmp_path / str(number)
        shutil.copytree(recorded_run.path, run)
        damage(run / name)
        directory = RunDirectory(run)
        for look in (
            lambda run=run: run_status(run),
            lambda directory=directory: is_complete(directory, config),
            lambda directory=directory: changed_settings(directory, config),
            lambda directory=directory: History(directory).starts(),
            lambda directory=directory: list_checkpoints(directory.checkpoints),
        ):
            said = str(run)
            try:
                look()
            except EsolmError as error:
                said = str(error)
            except OSError as error:  # which the command says in one line
                said = str(error) if error.errno in OF_THE_MACHINE else repr(error)
            assert name.name in said or str(run) in said, (name, said)
        assert resume_point(run) == NEWEST, name
        assert bytes_of(run / "checkpoints") == checkpoints, name
        shutil.rmtree(run)
