"""The commit protocol: a checkpoint is whole or it does not exist.

Everything is written into `step_N.tmp/`; then a manifest with the size and sha256 of every file;
then the directory is renamed. A directory without a valid manifest is not a checkpoint.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esolm.data_prep.files import fsync_directory
from esolm.pipeline.checkpoint.threads import in_threads
from esolm.pipeline.errors import CheckpointError, ConfigError, UnreadableCheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
STAGING, REPLACED, DAMAGED = ".tmp", ".replaced", ".damaged"
"""Suffixes of directories that are not checkpoints yet, or no longer."""
_STEP = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint consists of.

    files: the size and checksum of each file, {"bytes", "sha256"} by name. run: what a resume needs
    to know (see `RunState`).
    """

    step: int
    files: dict[str, dict[str, Any]]
    run: dict[str, Any]


def step_directory(checkpoints: Path, step: int) -> Path:
    """The directory of a committed checkpoint."""
    return checkpoints / f"step_{step:08d}"


def staging_directory(checkpoints: Path, step: int) -> Path:
    """The directory of a checkpoint that is being written or removed; nobody reads it."""
    return step_directory(checkpoints, step).with_suffix(STAGING)


def is_step_name(name: str) -> bool:
    """Whether a directory of this name may be a checkpoint."""
    return _STEP.fullmatch(name) is not None


def step_of(directory: Path) -> int:
    """The step in a checkpoint's name."""
    return int(directory.stem.removeprefix("step_"))


def begin(checkpoints: Path, step: int) -> Path:
    """Makes an empty directory to write the checkpoint of `step` into; called by one rank."""
    staging = staging_directory(checkpoints, step)
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    return staging


def remove_leftovers(checkpoints: Path) -> None:
    """Removes what interrupted saves and removals have left behind; called by one rank."""
    for directory in checkpoints.glob(f"step_*{REPLACED}"):
        if not directory.with_suffix("").exists():  # the save that was to replace it never ended
            directory.rename(directory.with_suffix(""))
        else:
            _remove(directory)
    for directory in checkpoints.glob(f"step_*{STAGING}"):
        logger.info("%s was never committed, or was being removed: it is removed now", directory)
        _remove(directory)


def _remove(directory: Path) -> None:
    """Removes a directory if it can: a file that another process holds open must not end a run."""
    try:
        shutil.rmtree(directory)
    except OSError as error:
        logger.warning("%s could not be removed and still takes up space: %s", directory, error)


def set_aside(directory: Path) -> Path:
    """Renames a damaged checkpoint, so that nobody takes it for a whole one; called by one rank."""
    aside = directory.with_suffix(DAMAGED)
    if aside.exists():
        _remove(aside)
    return directory.rename(aside)


def damaged(checkpoints: Path) -> list[Path]:
    """The directories that were set aside."""
    return sorted(checkpoints.glob(f"step_*{DAMAGED}"))


def digest(path: Path) -> dict[str, Any]:
    """The size and checksum of a file, as the manifest records them."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def digests(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """The `digest` of each file, by its name."""
    return dict(zip([path.name for path in paths], in_threads(digest, paths), strict=True))


def commit(staging: Path, manifest: CheckpointManifest) -> Path:
    """Writes the manifest, then gives the directory its final name; called by one rank, last."""
    content = {"format": FORMAT_VERSION, **vars(manifest), "sha256": _digest(manifest)}
    with (staging / MANIFEST).open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(staging)
    final = staging.with_suffix("")
    replaced = final.with_suffix(REPLACED)
    if final.exists():  # the run was rolled back, and now saves this step again
        final.rename(replaced)
    staging.rename(final)
    fsync_directory(final.parent)
    if replaced.exists():
        _remove(replaced)
    return final


def _digest(manifest: CheckpointManifest) -> str:
    """The checksum of everything that a manifest says."""
    return hashlib.sha256(json.dumps(vars(manifest), sort_keys=True).encode()).hexdigest()


def refuse_other(path: Path) -> None:
    """Raises ConfigError if a path is neither a run nor a checkpoint, which is no damage."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no directory; name a run or a checkpoint directory")
    if is_step_name(path.name) or (path / "checkpoints").is_dir():
        return
    if (path / "shards").is_dir() or not (path / MANIFEST).exists():
        raise ConfigError(
            f"{path} is neither a run nor a checkpoint; name the run.dir of a training, or one of "
            "its checkpoints/step_*"
        )


def read_manifest(directory: Path) -> CheckpointManifest:
    """Reads the manifest of a committed checkpoint and checks that every file has its full size.

    Raises CheckpointError, which names the first thing that is missing or cut short, and
    UnreadableCheckpointError if the file system refuses to tell.
    """
    try:
        text = (directory / MANIFEST).read_text()
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(f"{directory} has no {MANIFEST}: it was never committed") from None
    except OSError as error:
        raise UnreadableCheckpointError.of(directory / MANIFEST, error) from error
    except ValueError as error:
        raise CheckpointError(f"{directory / MANIFEST} is damaged: {error!r}") from error
    manifest = parse_manifest(text, str(directory))
    if is_step_name(directory.name) and step_of(directory) != manifest.step:
        raise CheckpointError(
            f"{directory} holds the checkpoint of step {manifest.step}, by its manifest: it was "
            "renamed, or copied under another name"
        )
    for name, expected in manifest.files.items():
        path = directory / name
        size = _size(path)
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointError(f"{path} {found}; the manifest says {expected['bytes']} bytes")
    return manifest


def _size(path: Path) -> int | None:
    """Of a file; None where there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise UnreadableCheckpointError.of(path, error) from error


def parse_manifest(text: str, where: str) -> CheckpointManifest:
    """Reads a manifest from its text. Raises CheckpointError if it is damaged or of another format.

    where: the directory that messages name.
    """
    try:
        content = json.loads(text)
        manifest = CheckpointManifest(content["step"], content["files"], content["run"])
        version, digest = content["format"], content.get("sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}/{MANIFEST} is damaged: {error!r}") from error
    if version not in (1, FORMAT_VERSION):  # format 1 has no checksum of its own
        raise CheckpointError(
            f"{where} has format {version}; this version reads formats 1 and {FORMAT_VERSION}"
        )
    if version != 1 and digest != _digest(manifest):
        raise CheckpointError(f"{where}/{MANIFEST} is damaged: its own checksum differs")
    if not _is_sane(manifest):
        raise CheckpointError(
            f"{where}/{MANIFEST} is damaged: it does not list files as a manifest does"
        )
    return manifest


def _is_sane(manifest: CheckpointManifest) -> bool:
    """Whether a manifest has the right types and names only files of its own directory.

    It may come from a server, so a name such as ../../x must not be followed.
    """
    if not isinstance(manifest.files, dict) or not isinstance(manifest.run, dict):
        return False
    return isinstance(manifest.step, int) and all(
        Path(name).name == name and isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"}
        for name, entry in manifest.files.items()
    )


def verify_files(
    directory: Path,
    manifest: CheckpointManifest,
    names: list[str],
    moved: Callable[[], None] = lambda: None,
) -> list[str]:
    """Says what is wrong with the content of the named files, one line for each that is damaged.

    moved: called after every file. Raises UnreadableCheckpointError if a file cannot be read.
    """

    def problem(name: str) -> str:
        try:
            same = digest(directory / name) == manifest.files[name]
        except FileNotFoundError:
            return f"{directory / name} is missing"
        except OSError as error:
            raise UnreadableCheckpointError.of(directory / name, error) from error
        return "" if same else f"{directory / name}: checksum differs from the manifest's"

    problems = []
    for found in in_threads(problem, names):
        problems += [found] if found else []
        moved()
    return problems


def committed(checkpoints: Path) -> list[Path]:
    """The directories with a checkpoint's name, oldest first, whether they are valid or not."""
    if not checkpoints.is_dir():
        return []
    return sorted((p for p in checkpoints.iterdir() if is_step_name(p.name)), key=step_of)


def newest_valid(checkpoints: Path) -> tuple[Path, CheckpointManifest] | None:
    """The newest checkpoint whose manifest and file sizes are right; the log names damaged ones."""
    for directory in reversed(committed(checkpoints)):
        try:
            return directory, read_manifest(directory)
        except UnreadableCheckpointError:
            raise
        except CheckpointError as error:
            logger.warning("checkpoint skipped: %s", error)
    return None


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    keep: how many of the newest. permanent_every: checkpoints at multiples of so many steps are
    kept for ever; 0 means none.
    """

    keep: int
    permanent_every: int = 0

    def is_permanent(self, step: int) -> bool:
        """Whether a checkpoint of this step is kept for ever."""
        return self.permanent_every > 0 and step % self.permanent_every == 0

    def superseded(self, valid: dict[str, CheckpointManifest]) -> list[str]:
        """Which of these valid checkpoints, given by name and oldest first, are to be removed.

        Checkpoints with the same number of updates have the same weights, as steps were refused in
        between. Only the newest of them counts, or refused steps would push out all sound ones.
        """
        rolling = {n: m for n, m in valid.items() if not self.is_permanent(step_of(Path(n)))}
        newest_of = {m.run.get("updates", m.step): name for name, m in rolling.items()}
        kept = sorted(newest_of.values(), key=lambda name: step_of(Path(name)))[-self.keep :]
        return [name for name in rolling if name not in kept]


def retain(checkpoints: Path, retention: Retention, spared: Collection[str] = frozenset()) -> None:
    """Removes the valid checkpoints that are neither new enough nor permanent, after a commit.

    spared: names of checkpoints that are being read now and stay until the next time.
    """
    found = {path.name: _valid_manifest(path) for path in committed(checkpoints)}
    valid = {name: manifest for name, manifest in found.items() if manifest is not None}
    for name in retention.superseded(valid):
        if name in spared:
            continue
        directory = checkpoints / name
        # It is renamed first: an interrupted removal must not leave half a checkpoint of that name.
        doomed = directory.with_suffix(STAGING)
        directory.rename(doomed)
        _remove(doomed)


def _valid_manifest(directory: Path) -> CheckpointManifest | None:
    try:
        return read_manifest(directory)
    except CheckpointError:
        return None
