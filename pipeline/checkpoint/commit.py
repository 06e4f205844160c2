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

from data_prep.files import fsync_directory
from pipeline.checkpoint.threads import in_threads
from pipeline.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
STAGING, REPLACED, DAMAGED = ".tmp", ".replaced", ".damaged"
"""Suffixes of directories that are no checkpoints, or none any more."""
_STEP = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class CheckpointManifest:
    """files: name -> {"bytes", "sha256"}. run: what is needed to resume (see `RunState`)."""

    step: int
    files: dict[str, dict[str, Any]]
    run: dict[str, Any]


def step_directory(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def staging_directory(checkpoints: Path, step: int) -> Path:
    """Where a checkpoint is while it is being written or removed; nothing reads that name."""
    return step_directory(checkpoints, step).with_suffix(STAGING)


def is_step_name(name: str) -> bool:
    """Whether a directory of that name may be a checkpoint."""
    return _STEP.fullmatch(name) is not None


def step_of(directory: Path) -> int:
    return int(directory.stem.removeprefix("step_"))


def begin(checkpoints: Path, step: int) -> Path:
    """A fresh directory to write the checkpoint of `step` into; called by one rank."""
    staging = staging_directory(checkpoints, step)
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    return staging


def remove_leftovers(checkpoints: Path) -> None:
    """What saves and removals that were cut short left behind goes; called by one rank."""
    for directory in checkpoints.glob(f"step_*{REPLACED}"):
        if not directory.with_suffix("").exists():  # its successor was not given the name yet
            directory.rename(directory.with_suffix(""))
        else:
            _remove(directory)
    for directory in checkpoints.glob(f"step_*{STAGING}"):
        logger.info("%s was never committed, or was to be removed: it goes", directory)
        _remove(directory)


def _remove(directory: Path) -> None:
    """As far as that can be: a file that another process holds open must not end a run."""
    try:
        shutil.rmtree(directory)
    except OSError as error:
        logger.warning("%s could not be removed and takes up the disk: %s", directory, error)


def set_aside(directory: Path) -> Path:
    """Takes a damaged checkpoint's name, so that nothing counts it as one; called by one rank."""
    aside = directory.with_suffix(DAMAGED)
    if aside.exists():
        _remove(aside)
    return directory.rename(aside)


def damaged(checkpoints: Path) -> list[Path]:
    """What was set aside."""
    return sorted(checkpoints.glob(f"step_*{DAMAGED}"))


def digest(path: Path) -> dict[str, Any]:
    """Size and checksum of a file as the manifest records them."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def digests(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Of several files, by their names."""
    return dict(zip([path.name for path in paths], in_threads(digest, paths), strict=True))


def commit(staging: Path, manifest: CheckpointManifest) -> Path:
    """Writes the manifest and gives the directory its name; called by one rank, last of all."""
    content = {"format": FORMAT_VERSION, **vars(manifest), "sha256": _digest(manifest)}
    with (staging / MANIFEST).open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(staging)
    final = staging.with_suffix("")
    replaced = final.with_suffix(REPLACED)
    if final.exists():  # a run was rolled back to this step, and saves what it goes on with
        final.rename(replaced)
    staging.rename(final)
    fsync_directory(final.parent)
    if replaced.exists():
        _remove(replaced)
    return final


def _digest(manifest: CheckpointManifest) -> str:
    """Of all that a manifest says."""
    return hashlib.sha256(json.dumps(vars(manifest), sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> CheckpointManifest:
    """The manifest of a committed checkpoint, after a check that every file has its full size.

    Raises CheckpointError naming the first thing that is missing or cut short.
    """
    try:
        text = (directory / MANIFEST).read_text()
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {MANIFEST}: it was never committed") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / MANIFEST} is damaged: {error!r}") from error
    manifest = parse_manifest(text, str(directory))
    for name, expected in manifest.files.items():
        path = directory / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointError(f"{path} {found}; the manifest says {expected['bytes']} bytes")
    return manifest


def parse_manifest(text: str, where: str) -> CheckpointManifest:
    """Raises CheckpointError if it is damaged or of another format."""
    try:
        content = json.loads(text)
        manifest = CheckpointManifest(content["step"], content["files"], content["run"])
        version, digest = content["format"], content.get("sha256")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}/{MANIFEST} is damaged: {error!r}") from error
    if version not in (1, FORMAT_VERSION):  # 1: without a checksum of its own
        raise CheckpointError(
            f"{where} has format {version}; this version reads formats 1 and {FORMAT_VERSION}"
        )
    if version != 1 and digest != _digest(manifest):
        raise CheckpointError(f"{where}/{MANIFEST} is damaged: it does not fit its own checksum")
    if not _is_sane(manifest):
        raise CheckpointError(f"{where}/{MANIFEST} is damaged: not what a manifest lists")
    return manifest


def _is_sane(manifest: CheckpointManifest) -> bool:
    """Also that no file lies elsewhere: a manifest may come from a server."""
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
    """What is wrong with the content of the named files, one line each; moved: after every file."""

    def problem(name: str) -> str:
        try:
            same = digest(directory / name) == manifest.files[name]
        except OSError as error:  # as some file systems tell of a damaged block
            return f"{directory / name} cannot be read: {error}"
        return "" if same else f"{directory / name}: checksum differs from the manifest's"

    problems = []
    for found in in_threads(problem, names):
        problems += [found] if found else []
        moved()
    return problems


def committed(checkpoints: Path) -> list[Path]:
    """Directories that bear a checkpoint's name, oldest first, valid or not."""
    if not checkpoints.is_dir():
        return []
    return sorted((p for p in checkpoints.iterdir() if is_step_name(p.name)), key=step_of)


def newest_valid(checkpoints: Path) -> tuple[Path, CheckpointManifest] | None:
    """The newest checkpoint whose manifest and sizes hold; damaged ones are named in the log."""
    for directory in reversed(committed(checkpoints)):
        try:
            return directory, read_manifest(directory)
        except CheckpointError as error:
            logger.warning("checkpoint skipped: %s", error)
    return None


@dataclass(frozen=True)
class Retention:
    """keep: newest checkpoints kept. permanent_every: steps whose multiples are kept for ever."""

    keep: int
    permanent_every: int = 0

    def is_permanent(self, step: int) -> bool:
        return self.permanent_every > 0 and step % self.permanent_every == 0

    def superseded(self, names: list[str]) -> list[str]:
        """Of valid checkpoints, oldest first, those that are to go."""
        rolling = [name for name in names if not self.is_permanent(step_of(Path(name)))]
        return rolling[: -self.keep]


def retain(checkpoints: Path, retention: Retention, spared: Collection[str] = frozenset()) -> None:
    """Removes all valid checkpoints but the newest and the permanent; called after a commit.

    spared: names of some that are being read, and go another time.
    """
    valid = [path.name for path in committed(checkpoints) if _is_valid(path)]
    for name in retention.superseded(valid):
        if name in spared:
            continue
        directory = checkpoints / name
        # Renamed first: a removal that is cut short must not leave half a checkpoint by that name.
        doomed = directory.with_suffix(STAGING)
        directory.rename(doomed)
        _remove(doomed)


def _is_valid(directory: Path) -> bool:
    try:
        read_manifest(directory)
    except CheckpointError:
        return False
    return True
