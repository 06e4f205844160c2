"""The checkpoints of a run as a list, and the check of a single one; without torch."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.checkpoint import commit
from pipeline.errors import CheckpointError


@dataclass(frozen=True)
class CheckpointInfo:
    """bytes: of all files on disk. time: of the commit. valid: manifest and sizes hold.

    damage: the first thing that is wrong, empty where valid.
    """

    name: str
    step: int
    bytes: int
    time: str
    valid: bool
    damage: str


def list_checkpoints(checkpoints: Path) -> list[CheckpointInfo]:
    """What bears a checkpoint's name in a run's `checkpoints/`, oldest step first."""
    found = (_info(directory) for directory in commit.committed(checkpoints))
    return [info for info in found if info is not None]


def _info(directory: Path) -> CheckpointInfo | None:
    """None if a live run has just retired it."""
    try:
        return _look_at(directory)
    except FileNotFoundError:
        return None


def _look_at(directory: Path) -> CheckpointInfo:
    try:
        commit.read_manifest(directory)
        damage = ""
    except CheckpointError as error:
        damage = str(error)
    manifest = directory / commit.MANIFEST
    moment = (manifest if manifest.exists() else directory).stat().st_mtime
    return CheckpointInfo(
        name=directory.name,
        step=commit.step_of(directory),
        bytes=sum(path.stat().st_size for path in directory.iterdir() if path.is_file()),
        time=datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds"),
        valid=not damage,
        damage=damage,
    )


def find_checkpoint(path: Path) -> Path:
    """A checkpoint directory itself, or the newest of a run's, valid or not.

    Raises CheckpointError if there is none.
    """
    if (path / "checkpoints").is_dir():
        found = commit.committed(path / "checkpoints")
        if not found:
            raise CheckpointError(f"{path} holds no checkpoint")
        return found[-1]
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; name a run or a checkpoint directory")
    return path


def damage_of(directory: Path) -> list[str]:
    """Everything that is wrong with a checkpoint, one line each: manifest, sizes, checksums."""
    try:
        manifest = commit.read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    return commit.verify_files(directory, manifest, sorted(manifest.files))
