"""Checkpoints on a file server: copied after the commit, whole or not there, and fetched back."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from esolm.pipeline.checkpoint import commit
from esolm.pipeline.checkpoint.listing import checkpoints_of, verify
from esolm.pipeline.checkpoint.mirror import Mirror, newest_wanted
from esolm.pipeline.checkpoint.remote import RemoteRun, fetch, url_problems
from esolm.pipeline.errors import CheckpointError
from tests.ftp import PASSWORD, FtpServer
from tests.pipeline.checkpoint.test_commit import save

RETENTION = commit.Retention(keep=2, permanent_every=10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FtpServer]:
    server = FtpServer(tmp_path / "served")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["file", "ftp"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's URL; what it names lies in `served/run`."""
    if request.param == "file":
        return f"file://{tmp_path}/served/run"
    return f"{request.getfixturevalue('server').url}/run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a tokenizer and no checkpoint yet."""
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "tokenizer.model").write_bytes(b"pieces")
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    return tmp_path / "run"


def mirrored(url: str, run: Path) -> list[str]:
    """Names there, once everything that is here was looked at."""
    mirror = Mirror(url, run, RETENTION)
    mirror.wake()
    mirror.close(60)
    return RemoteRun(url).checkpoints()


def test_what_is_here_comes_to_be_there_and_back(url: str, run: Path, tmp_path: Path) -> None:
    for step in (10, 11, 12, 13):
        save(run / "checkpoints", step)
    assert mirrored(url, run) == ["step_00000010", "step_00000012", "step_00000013"]
    served = tmp_path / "served" / "run"
    assert (served / "tokenizer" / "tokenizer.model").read_bytes() == b"pieces"
    assert (served / "config.yaml").exists()
    infos = checkpoints_of(url)
    assert [(info.step, info.valid) for info in infos] == [(10, True), (12, True), (13, True)]
    assert infos[0].bytes == sum(
        f.stat().st_size for f in (served / "checkpoints" / "step_00000010").iterdir()
    )
    shown = f"{RemoteRun(url).url}/checkpoints/step_00000013"
    assert verify(url) == (shown, [])
    assert PASSWORD not in shown
    local = fetch(url, tmp_path / "copies")
    assert commit.read_manifest(local) == commit.read_manifest(run / "checkpoints/step_00000013")
    assert (tmp_path / "copies" / "tokenizer" / "tokenizer.model").exists()
    older = fetch(f"{url}/checkpoints/step_00000010", tmp_path / "copies")
    assert commit.read_manifest(older).step == 10


def test_half_a_checkpoint_is_none(url: str, run: Path, tmp_path: Path) -> None:
    """Without a manifest, with a part of it, with a file cut short, with a bit turned over."""
    for step in (1, 2, 3):
        save(run / "checkpoints", step)
    mirrored(url, run)
    two, three = (tmp_path / "served/run/checkpoints" / f"step_0000000{n}" for n in (2, 3))
    manifest = (three / "manifest.json").read_text()
    (three / "manifest.json").unlink()
    assert fetch(url, tmp_path / "copies").name == "step_00000002"
    (three / "manifest.json").write_text(manifest[:-20])
    assert fetch(url, tmp_path / "copies").name == "step_00000002"
    (three / "manifest.json").write_text(manifest)
    (three / "a").write_bytes(b"weights")
    assert [info.valid for info in checkpoints_of(url)] == [True, False]
    assert "the manifest says 21 bytes" in verify(url)[1][0]
    (three / "a").write_bytes(b"WEIGHTS" * 3)
    assert "checksum differs" in verify(url)[1][0]
    with pytest.raises(CheckpointError, match="not copied whole"):
        fetch(url, tmp_path / "copies")
    assert not (tmp_path / "copies" / "checkpoints" / "step_00000003").exists()
    (two / "manifest.json").unlink()
    (three / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        fetch(url, tmp_path / "others")
    assert mirrored(url, run) == ["step_00000002", "step_00000003"], "it is copied again"
    assert verify(url)[1] == []


def test_a_server_that_is_gone_costs_a_warning(
    server: FtpServer, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{server.url}/run"
    mirror = Mirror(url, run, RETENTION)
    save(run / "checkpoints", 1)
    mirror.wake()
    _settled(mirror)
    server.stop()
    save(run / "checkpoints", 2)
    mirror.wake()
    _settled(mirror)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "could not be copied to ftp://127.0.0.1" in warning.getMessage()
    assert PASSWORD not in caplog.text
    assert mirror.newest_step == 1
    assert "cannot be asked for one" in newest_wanted(url, run / "elsewhere")[1]
    server.start()
    save(run / "checkpoints", 3)
    mirror.wake()
    mirror.close(60)
    assert mirror.newest_step == 3
    assert RemoteRun(url).checkpoints() == ["step_00000002", "step_00000003"]
    wanted = newest_wanted(url, run / "elsewhere")[0]
    assert wanted is not None
    assert wanted[0] == "step_00000003"


def _settled(mirror: Mirror) -> None:
    with mirror._changed:
        assert mirror._changed.wait_for(lambda: mirror._done == mirror._asked, 60)


def test_what_is_being_copied_is_not_retired(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    commit.retain(tmp_path, commit.Retention(keep=2), spared={"step_00000001"})
    assert [commit.step_of(path) for path in commit.committed(tmp_path)] == [1, 3, 4]
    commit.retain(tmp_path, commit.Retention(keep=2))
    assert [commit.step_of(path) for path in commit.committed(tmp_path)] == [3, 4]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("/mnt/backup", "is no URL"),
        ("nosuch://bucket/run", "nosuch:// cannot be used here"),
        ("file:///mnt/backup", ""),
        ("", ""),
    ],
)
def test_a_url_that_cannot_be_is_told_before_the_run(url: str, problem: str) -> None:
    found = url_problems("checkpoint.mirror", url)
    assert bool(found) == bool(problem)
    assert all(problem in text and "checkpoint.mirror" in text for text in found)
