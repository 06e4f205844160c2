import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from esolm.pipeline.checkpoint import commit
from esolm.pipeline.errors import CheckpointError, UnreadableCheckpointError


def save(checkpoints: Path, step: int) -> Path:
    """A committed checkpoint of two small files."""
    staging = commit.begin(checkpoints, step)
    (staging / "a").write_bytes(b"weights" * step)
    (staging / "b").write_bytes(b"moments")
    files = {name: commit.digest(staging / name) for name in ("a", "b")}
    return commit.commit(staging, commit.CheckpointManifest(step, files, {"step": step}))


def test_newest_valid_is_the_last_commit(tmp_path: Path) -> None:
    assert commit.newest_valid(tmp_path) is None
    for step in (1, 2, 10):
        save(tmp_path, step)
    found = commit.newest_valid(tmp_path)
    assert found is not None
    assert found[0].name == "step_00000010"
    assert found[1].run == {"step": 10}


def test_a_directory_that_was_not_committed_does_not_exist(tmp_path: Path) -> None:
    save(tmp_path, 1)
    staging = commit.begin(tmp_path, 2)
    (staging / "a").write_bytes(b"half")
    found = commit.newest_valid(tmp_path)
    assert found is not None
    assert found[1].step == 1
    assert not list(commit.begin(tmp_path, 2).iterdir()), "what a killed save left is cleared"


@pytest.mark.parametrize("damage", ["missing", "short", "manifest", "no manifest", "format"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    manifest = newest / commit.MANIFEST
    if damage == "missing":
        (newest / "a").unlink()
    elif damage == "short":
        (newest / "a").write_bytes(b"w")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:50])
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with caplog.at_level(logging.WARNING):
        found = commit.newest_valid(tmp_path)
    assert found is not None
    assert found[1].step == 1
    assert "step_00000002" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        {"files": {"../a": {"bytes": 0, "sha256": ""}}},
        {"files": {"/etc/hostname": {"bytes": 0, "sha256": ""}}},
        {"files": {"a": 7}},
        {"files": ["a"]},
        {"step": "last"},
        {"run": None},
    ],
)
def test_a_manifest_that_lists_nonsense_is_damaged(content: dict[str, object]) -> None:
    whole = {"format": 1, "step": 1, "files": {}, "run": {}}
    assert commit.parse_manifest(json.dumps(whole), "here").step == 1
    with pytest.raises(CheckpointError, match=r"here/manifest\.json is damaged"):
        commit.parse_manifest(json.dumps({**whole, **content}), "here")


def test_a_manifest_has_a_checksum_of_its_own(tmp_path: Path) -> None:
    manifest = save(tmp_path, 3) / commit.MANIFEST
    text = manifest.read_text()
    assert commit.parse_manifest(text, "here").run == {"step": 3}
    for changed in (text.replace('"step": 3', '"step": 5'), text.replace("sha256", "sha255")):
        assert changed != text
        with pytest.raises(CheckpointError, match=r"here/manifest\.json is damaged"):
            commit.parse_manifest(changed, "here")


def failing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_is_not_called_damaged(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    directory, read = save(tmp_path, 3), commit.digest

    def broken(path: Path) -> dict[str, object]:
        if path.name == "b":
            raise failing(number)
        return read(path)

    manifest = commit.read_manifest(directory)
    monkeypatch.setattr(commit, "digest", broken)
    with pytest.raises(UnreadableCheckpointError, match=f"b cannot be read.*{os.strerror(number)}"):
        commit.verify_files(directory, manifest, ["a", "b"])

    read_text = Path.read_text

    def refused(self: Path, *arguments: Any, **options: Any) -> str:
        if self == directory / commit.MANIFEST:
            raise failing(number)
        return read_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UnreadableCheckpointError, match="not prove that it is damaged"):
        commit.newest_valid(tmp_path)


def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    directory = save(tmp_path, 3)
    manifest = commit.read_manifest(directory)
    (directory / "b").unlink()
    assert commit.verify_files(directory, manifest, ["a", "b"]) == [f"{directory / 'b'} is missing"]


def test_a_checkpoint_under_the_name_of_another_step_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 3).rename(commit.step_directory(tmp_path, 7))
    with pytest.raises(CheckpointError, match=r"step_00000007 holds the checkpoint of step 3"):
        commit.read_manifest(commit.step_directory(tmp_path, 7))
    elsewhere = commit.step_directory(tmp_path, 7).rename(tmp_path / "my_copy")
    assert commit.read_manifest(elsewhere).step == 3, "a copy may have any other name"


def test_refused_steps_push_no_sound_checkpoint_out(tmp_path: Path) -> None:
    """Steps 40 to 60 were refused: their checkpoints have the weights of the one before."""
    updates = {10: 10, 20: 20, 30: 30, 40: 35, 50: 35, 60: 35}
    for step, count in updates.items():
        staging = commit.begin(tmp_path, step)
        commit.commit(staging, commit.CheckpointManifest(step, {}, {"updates": count}))
        commit.retain(tmp_path, commit.Retention(keep=3))
    assert [commit.step_of(path) for path in commit.committed(tmp_path)] == [20, 30, 60]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("place", ["second rename", "removal"])
def test_a_checkpoint_that_is_saved_again_is_there_at_every_moment(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a roll-back: the old one stands until the new one bears the name."""
    save(tmp_path, 1)
    rename = Path.rename

    def killed_renaming(self: Path, target: Path) -> Path:
        if self.suffix == commit.STAGING:
            raise Killed
        return rename(self, target)

    def killed_removing(path: Path) -> None:
        next(path.iterdir()).unlink()
        raise Killed

    with monkeypatch.context() as patched:
        if place == "second rename":
            patched.setattr(Path, "rename", killed_renaming)
        else:
            patched.setattr(shutil, "rmtree", killed_removing)
        with pytest.raises(Killed):
            save(tmp_path, 1)
    commit.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert commit.read_manifest(tmp_path / "step_00000001").step == 1


def test_what_cannot_be_removed_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that another process holds open on NFS, say."""

    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    for step in (1, 2):
        save(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", busy)
    with caplog.at_level(logging.WARNING):
        commit.retain(tmp_path, commit.Retention(1))
        commit.remove_leftovers(tmp_path)
    assert caplog.text.count("step_00000001.tmp could not be removed") == 2
    assert [path.name for path in commit.committed(tmp_path)] == ["step_00000002"]


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path: Path) -> None:
    directory = save(tmp_path, 3)
    manifest = commit.read_manifest(directory)
    assert commit.verify_files(directory, manifest, ["a", "b"]) == []
    content = bytearray((directory / "a").read_bytes())
    content[4] ^= 1
    (directory / "a").write_bytes(content)
    (problem,) = commit.verify_files(directory, manifest, ["a", "b"])
    assert problem.startswith(str(directory / "a"))


def test_retention_never_removes_the_last_valid_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step_00000004" / "a").unlink()
    commit.retain(tmp_path, commit.Retention(2))
    assert [path.name for path in commit.committed(tmp_path)] == [
        "step_00000002",
        "step_00000003",
        "step_00000004",
    ]
    with pytest.raises(CheckpointError, match="is missing"):
        commit.read_manifest(tmp_path / "step_00000004")


def test_permanent_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
        commit.retain(tmp_path, commit.Retention(keep=1, permanent_every=3))
    assert [commit.step_of(path) for path in commit.committed(tmp_path)] == [3, 6, 7]
