"""Runs whose checkpoints are copied to a file server."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from esolm.pipeline.checkpoint.commit import newest_valid
from esolm.pipeline.checkpoint.remote import RemoteRun
from tests.e2e.runs import finish, losses, start, write_config
from tests.ftp import PASSWORD, FtpServer

pytestmark = pytest.mark.dist


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FtpServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = FtpServer(tmp_path / "served")
    yield server
    server.stop()


@pytest.mark.check
def test_a_run_outlives_its_disk(dataset: Path, server: FtpServer, tmp_path: Path) -> None:
    """It goes on from the mirror, in another layout, and does not start anew without it."""
    config, options, url = _configured(dataset, server, tmp_path)
    run = config.parent / "run"
    server.start()
    finish(start("train", str(config), "parallel.tp=1", *options, "train.steps=4"), 0)
    assert RemoteRun(url).checkpoints() == ["step_00000004"]
    before = losses(run)
    shutil.rmtree(run)
    server.stop()
    refused = finish(start("train", str(config), "parallel.tp=1", *options, "train.steps=6"), 1)
    assert "To start without it, empty checkpoint.mirror" in refused
    server.start()
    output = finish(start("train", str(config), "--ranks", "2", *options, "train.steps=6"), 0)
    assert "step_00000004 of its mirror" in output
    assert PASSWORD not in output
    assert [step for step, _ in before + losses(run)] == list(range(1, 7))
    assert RemoteRun(url).checkpoints() == ["step_00000004", "step_00000006"]


@pytest.mark.slow
def test_a_run_outlives_its_server(dataset: Path, server: FtpServer, tmp_path: Path) -> None:
    """And every command that reads checkpoints reads those of the server."""
    config, options, url = _configured(dataset, server, tmp_path)
    options, run = ["parallel.tp=1", *options], config.parent / "run"
    server.start()
    finish(start("train", str(config), *options, "train.steps=4"), 0)
    server.stop()
    output = finish(start("train", str(config), *options, "train.steps=8"), 0)
    assert "could not be copied to ftp://127.0.0.1" in output
    newest = newest_valid(run / "checkpoints")
    assert newest is not None
    assert newest[1].step == 8
    server.start()
    finish(start("train", str(config), *options, "train.steps=12"), 0)
    listed = finish(start("checkpoint", "ls", url, "--json"), 0)
    assert [(each["step"], each["valid"]) for each in json.loads(listed)] == [(8, True), (12, True)]
    finish(start("checkpoint", "verify", url), 0)
    finish(start("checkpoint", "diff", url, str(run)), 0)
    assert "step 12" in finish(start("export", url, "--out", str(tmp_path / "bundle")), 0)
    other = write_config(tmp_path / "other", dataset, steps=1)
    begun = finish(start("train", str(other), "parallel.tp=1", f"train.init_from={url}"), 0)
    assert "weights of" in begun
    assert not (tmp_path / "other" / "run" / "init_from").exists()


def _configured(dataset: Path, server: FtpServer, folder: Path) -> tuple[Path, list[str], str]:
    """A run's configuration, what else it is started with, and its mirror."""
    url = f"{server.url}/first"
    options = [f"checkpoint.mirror={url}", "optimizer.schedule=constant"]
    return write_config(folder / "mirrored", dataset), options, url
