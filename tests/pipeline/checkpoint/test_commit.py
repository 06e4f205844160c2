import json
import logging
from pathlib import Path

import pytest

from pipeline.checkpoint import commit
from pipeline.errors import CheckpointError


def save(checkpoints: Path, step: int) -> Path:
    """A committed checkpoint of two small files."""
    staging = commit.begin(checkpoints, step)
    (staging / "a").write_bytes(b"weights" * step)
    (staging / "b").write_bytes(b"moments")
    files = {name: commit.digest(staging / name) for name in ("a", "b")}
    return commit.commit(staging, commit.Manifest(step, files, {"step": step}))


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
    whole = {"format": commit.FORMAT_VERSION, "step": 1, "files": {}, "run": {}}
    assert commit.parse_manifest(json.dumps(whole), "here").step == 1
    with pytest.raises(CheckpointError, match=r"here/manifest\.json is damaged"):
        commit.parse_manifest(json.dumps({**whole, **content}), "here")


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
