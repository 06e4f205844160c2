"""Lists the checkpoints of a run and checks a single one, without torch."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from esolm.data_prep.remote import is_url
from esolm.pipeline.checkpoint import commit
from esolm.pipeline.checkpoint.remote import RemoteRun, RunAddress
from esolm.pipeline.errors import CheckpointError

ASIDE = "a start of the run found it damaged; its log says which file"


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint as the list shows it.

    bytes: the size of all files. time: when it was committed, or "n/a". valid: whether the manifest
    and the sizes hold. damage: the first thing that is wrong, empty if the checkpoint is valid.
    """

    name: str
    step: int
    bytes: int
    time: str
    valid: bool
    damage: str


def list_checkpoints(checkpoints: Path) -> list[CheckpointInfo]:
    """Lists what bears a checkpoint's name in a run's `checkpoints/`, the oldest step first.

    The directories that were set aside as damaged are listed as well.
    """
    directories = [*commit.committed(checkpoints), *commit.damaged(checkpoints)]
    found = (_info(directory) for directory in sorted(directories, key=commit.step_of))
    return [info for info in found if info is not None]


def checkpoints_of(run: str) -> list[CheckpointInfo]:
    """Lists the checkpoints of a run directory or of a mirror's URL.

    Raises CheckpointError if it has none.
    """
    if is_url(run):
        remote = RemoteRun(run)
        found = [_look_at_remote(remote, name) for name in remote.checkpoints()]
    else:
        found = list_checkpoints(Path(run) / "checkpoints")
    if not found:
        raise CheckpointError(f"{run} holds no checkpoints: none has been saved, or it is no run")
    return found


def verify(path: str) -> tuple[str, list[str]]:
    """Returns the checkpoint that a directory or URL stands for, and everything wrong with it."""
    if not is_url(path):
        directory = find_checkpoint(Path(path))
        return str(directory), damage_of(directory)
    place = RunAddress.of(path)
    remote = RemoteRun(place.run)
    names = remote.checkpoints()
    name = place.checkpoint or (names[-1] if names else None)
    if name is None:
        raise CheckpointError(f"{remote.url} holds no checkpoint")
    return f"{remote.url}/checkpoints/{name}", remote.damage_of(name)


def _look_at_remote(remote: RemoteRun, name: str) -> CheckpointInfo:
    try:
        remote.manifest(name)
        damage = ""
    except CheckpointError as error:
        damage = str(error)
    files = remote.files(f"checkpoints/{name}")
    return CheckpointInfo(
        name=name,
        step=commit.step_of(Path(name)),
        bytes=sum(file["size"] for file in files.values()),
        time=remote.time_of(f"checkpoints/{name}/{commit.MANIFEST}"),
        valid=not damage,
        damage=damage,
    )


def _info(directory: Path) -> CheckpointInfo | None:
    """Looks at a checkpoint; returns None if a live run has just removed it."""
    try:
        return _look_at(directory)
    except FileNotFoundError:
        return None


def _look_at(directory: Path) -> CheckpointInfo:
    try:
        commit.read_manifest(directory)
        damage = ASIDE if directory.suffix == commit.DAMAGED else ""
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
    """Returns the checkpoint directory itself, or the newest one of a run directory, valid or not.

    Raises CheckpointError if there is none.
    """
    commit.refuse_other(path)
    if (path / "checkpoints").is_dir():
        found = commit.committed(path / "checkpoints")
        if not found:
            raise CheckpointError(f"{path} holds no checkpoint")
        return found[-1]
    return path


def damage_of(directory: Path) -> list[str]:
    """Says all that is wrong with a checkpoint's manifest, sizes and checksums, one line each."""
    try:
        manifest = commit.read_manifest(directory)
    except CheckpointError as error:
        return [str(error)]
    return commit.verify_files(directory, manifest, sorted(manifest.files))
