"""Saves and restores a run: fragments, progress and the commit protocol in one place."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from esolm.pipeline.checkpoint import commit, store
from esolm.pipeline.checkpoint.files import write_problem
from esolm.pipeline.checkpoint.mirror import Mirror, newest_wanted, pull_or_problem
from esolm.pipeline.checkpoint.staging import Staging
from esolm.pipeline.errors import CheckpointError, UnreadableCheckpointError
from esolm.pipeline.parallel.engine import Engine
from esolm.pipeline.parallel.first_rank import from_first_rank
from esolm.pipeline.parallel.fragments import Fragment

logger = logging.getLogger(__name__)

T = TypeVar("T")
STUCK_SECONDS = 30
"""A save that has written nothing for so long is not waited for once the run has failed."""


@dataclass(frozen=True)
class RunState:
    """The progress of a run and what its checkpoint depends on, kept as JSON in the manifest.

    updates: the optimizer updates that were applied, fewer than `step` where a guard skipped some.
    data: the state of the sample reader. model, objective: the configurations as dictionaries.
    tokenizer: its fingerprint. guard: the state of the spike guard, which older checkpoints lack.
    """

    step: int
    updates: int
    consumed_samples: int
    tokens: int
    seq_len: int
    model: dict[str, Any]
    objective: dict[str, Any]
    data: dict[str, Any]
    data_path: str
    tokenizer: str
    guard: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_manifest(cls, manifest: commit.CheckpointManifest) -> "RunState":
        """Reads the state that a manifest holds. Raises CheckpointError if it lacks something."""
        given = {entry.name for entry in fields(cls)} & manifest.run.keys()
        try:
            return cls(**{name: manifest.run[name] for name in given})
        except TypeError as error:
            raise CheckpointError(f"the manifest of step {manifest.step}: {error}") from error


class Checkpointer:
    """Checkpoints of one run directory. Loading, saving and waiting are collective over all ranks.

    moved: is called after every file that is verified, so that a large checkpoint is not taken for
    a hang. mirror: the URL of a run that committed checkpoints are copied to; empty for no mirror.
    """

    def __init__(
        self,
        directory: Path,
        retention: commit.Retention,
        asynchronous: bool,
        moved: Callable[[], None],
        mirror: str = "",
    ) -> None:
        self.directory, self.retention, self.asynchronous = directory, retention, asynchronous
        self._moved = moved
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # The group is separate: plans and checksums are objects, which NCCL does not carry, and an
        # asynchronous save communicates while training does.
        self.group = dist.new_group(backend="gloo")
        self.durable_seconds: float | None = None
        """The seconds from the start of the last save until it was durable."""
        self._mirror_url = mirror
        self._mirror: Mirror | None = None
        self._staging = Staging()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None

    def save(self, engine: Engine, state: RunState) -> float:
        """Starts a checkpoint and returns the seconds that training was held up.

        An asynchronous save has copied the state on return and writes it in the background; ask
        `wait` for the outcome. Any other save is durable on return, or CheckpointError is raised.
        """
        started = time.perf_counter()
        self._finish_last()
        fragments = engine.fragments()
        if self.asynchronous:
            fragments = self._staged(fragments)
            self._thread = threading.Thread(
                target=self._write,
                args=(fragments, state, started),
                name="checkpoint",
                daemon=True,  # a save that `close` has given up must not hold the process
            )
            self._thread.start()
        else:
            self._write(fragments, state, started)
            self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Waits until nothing is being written. Raises CheckpointError if the last save failed.

        Nothing is left of a failed save, and the checkpoints before it stand.
        """
        failure = self._finish_last()
        if failure is not None:
            raise CheckpointError(failure)

    def _finish_last(self) -> str | None:
        """Waits until nothing is being written; returns why that failed, which the log says too."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        return failure

    def clean(self) -> None:
        """Removes what killed saves and removals left behind; called once, before the first save.

        None of it bears a checkpoint's name, so nothing reads it, but it takes up the disk.
        """
        self._from_first(lambda: commit.remove_leftovers(self.directory))

    def resume_point(self) -> tuple[Path, RunState] | None:
        """Returns the newest valid checkpoint, or None for a start at step 0.

        If none is here, it is the mirror's. Raises CheckpointError if the mirror cannot be asked,
        or if there were checkpoints and none is whole: a run must not start anew because a server
        did not answer or a disk is bad.
        """
        found = self.newest()
        if found is None and self._mirror_url:
            self._pull()
            found = self.newest()
        aside = self._from_first(lambda: [str(path) for path in commit.damaged(self.directory)])
        if found is None and aside:
            raise CheckpointError(
                f"no checkpoint of {self.directory} is whole: {', '.join(aside)}. Nothing was "
                "overwritten. Bring back a copy under its old name, without the suffix, or move "
                "these away to start again at step 0."
            )
        return found

    def _pull(self) -> None:
        """Copies the mirror's newest valid checkpoint here."""
        wanted, problem = self._from_first(lambda: newest_wanted(self._mirror_url, self.directory))
        if problem:
            raise CheckpointError(problem)
        if wanted is None:
            return
        name, manifest = wanted
        self._from_first(lambda: commit.begin(self.directory, manifest.step))
        staging = commit.staging_directory(self.directory, manifest.step)
        problems: list[str] = []
        for file in sorted(manifest.files)[self.rank :: self.world_size]:
            problems += pull_or_problem(self._mirror_url, name, file, staging, manifest)
            self._moved()
        if problems := [problem for part in self._gather(problems) for problem in part]:
            raise CheckpointError("\n".join(problems))
        self._from_first(lambda: commit.commit(staging, manifest))
        logger.warning("%s holds no checkpoint, so %s of its mirror it is", self.directory, name)

    def start_mirror(self) -> None:
        """Starts to copy checkpoints to the mirror: those that are here, then every new one."""
        if self._mirror_url and self.rank == 0:
            self._mirror = Mirror(self._mirror_url, self.directory.parent, self.retention)
            self._mirror.wake()

    @property
    def mirrored_step(self) -> int | None:
        """The newest step that lies at the mirror, as far as this rank knows."""
        return None if self._mirror is None else self._mirror.newest_step

    def close(self, seconds: float, failed: bool) -> None:
        """Gives a save that is under way, then the mirror, so many seconds to be done.

        failed: the run ends with an error. Other ranks may be gone then, and a save that waits for
        them never ends; so a save is waited for only as long as it still writes.
        """
        if self._thread is not None:
            if failed:
                self._wait_while_it_writes(seconds)
            else:
                self._thread.join(seconds)
        if self._mirror is not None:
            self._mirror.close(STUCK_SECONDS if failed else seconds)

    def _wait_while_it_writes(self, seconds: float) -> None:
        assert self._thread is not None
        started = moved = time.monotonic()
        written = -1
        while self._thread.is_alive() and time.monotonic() - started < seconds:
            now = self._bytes_written()
            if now != written:
                written, moved = now, time.monotonic()
            elif time.monotonic() - moved > STUCK_SECONDS:
                logger.warning("a checkpoint made no progress for %d s: left", STUCK_SECONDS)
                return
            self._thread.join(0.5)

    def _bytes_written(self) -> int:
        """Counts the bytes of unfinished saves; files may vanish while they are counted."""
        total = 0
        for path in self.directory.glob(f"step_*{commit.STAGING}/*"):
            with suppress(OSError):
                total += path.stat().st_size
        return total

    def newest(self) -> tuple[Path, RunState] | None:
        """Returns the newest checkpoint that is whole to the last byte, the same on every rank.

        Damaged ones are named in the log, set aside and passed over.
        """
        names = self._from_first(lambda: [str(path) for path in commit.committed(self.directory)])
        for name in reversed(names):
            directory = Path(name)
            manifest, damage = self._from_first(partial(_manifest_or_damage, directory))
            if manifest is not None:
                damage = self._damaged_files(directory, manifest)
            if manifest is not None and not damage:
                return directory, RunState.from_manifest(manifest)
            self._from_first(partial(commit.set_aside, directory))
            if self.rank == 0:
                logger.warning(
                    "checkpoint %s is passed over, and now bears the suffix %s: %s",
                    directory, commit.DAMAGED, "; ".join(damage),
                )  # fmt: skip
        return None

    def load(self, engine: Engine, directory: Path, state: RunState) -> None:
        """Restores weights, moments and EMA into whatever layout the engine has."""
        store.read(directory, engine.fragments(), self.group)
        engine.adopt(state.updates)

    def reserve(self, engine: Engine) -> None:
        """Takes the host memory for asynchronous saves now, so that not even the first one waits.

        The system hands out memory page by page as it is written, which is slower than copying.
        """
        if self.asynchronous:
            self._staged(engine.fragments())

    def _staged(self, fragments: list[Fragment]) -> list[Fragment]:
        return self._staging.copy([fragment for fragment in fragments if fragment.writes])

    def _write(self, fragments: list[Fragment], state: RunState, started: float) -> None:
        """Writes and commits a checkpoint; if it fails on one rank, all fail, leaving nothing."""
        staging = commit.staging_directory(self.directory, state.step)
        try:
            self._from_first(lambda: commit.begin(self.directory, state.step))
            store.write(staging, fragments, self.group)
            files = self._digests(staging)
            manifest = commit.CheckpointManifest(state.step, files, asdict(state))
            self._from_first(lambda: commit.commit(staging, manifest))
            self._from_first(self._retain)
            self.durable_seconds = time.perf_counter() - started
        except Exception as error:  # whatever it was, `wait` raises it on the main thread
            # Of a full disk torch says no more than "unexpected pos 704 vs 598".
            reason = write_problem(staging) or str(error)
            logger.exception("the checkpoint of step %d failed: %s", state.step, reason)
            if self.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            self._failure = f"the checkpoint of step {state.step} could not be written: {reason}"

    def _retain(self) -> None:
        spared = frozenset[str]() if self._mirror is None else self._mirror.copying
        try:
            commit.retain(self.directory, self.retention, spared)
        except OSError as error:  # the checkpoint itself is durable
            logger.warning("old checkpoints could not be removed: %s", error)
        if self._mirror is not None:
            self._mirror.wake()

    def _digests(self, staging: Path) -> dict[str, dict[str, Any]]:
        """Returns the sizes and checksums of all files; each rank reads back those it wrote."""
        mine = sorted(staging.glob(f"__{self.rank}_*"))
        if self.rank == 0:
            mine.append(staging / ".metadata")
        try:
            part, problem = commit.digests(mine), ""
        except OSError as error:
            part, problem = {}, str(error)
        parts = self._gather((part, problem))
        if problems := [problem for _, problem in parts if problem]:
            raise CheckpointError("; ".join(problems))
        return {name: entry for part, _ in parts for name, entry in part.items()}

    def _damaged_files(self, directory: Path, manifest: commit.CheckpointManifest) -> list[str]:
        """Checks every file's content and says what is damaged; the ranks share the reading."""
        mine = sorted(manifest.files)[self.rank :: self.world_size]
        found: list[str] | UnreadableCheckpointError
        try:
            found = commit.verify_files(directory, manifest, mine, self._moved)
        except UnreadableCheckpointError as error:
            found = error
        problems = []
        for part in self._gather(found):
            if isinstance(part, UnreadableCheckpointError):
                raise part
            problems += part
        return problems

    def _gather(self, mine: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, mine, group=self.group)
        return gathered

    def _from_first(self, ask: Callable[[], T]) -> T:
        """Gives every rank what rank 0 finds or does; an OSError becomes a CheckpointError."""
        try:
            return from_first_rank(ask, self.group)
        except OSError as error:
            raise CheckpointError(str(error)) from error


def _manifest_or_damage(directory: Path) -> tuple[commit.CheckpointManifest | None, list[str]]:
    """Returns the manifest or its damage. Raises UnreadableCheckpointError if neither is known."""
    try:
        return commit.read_manifest(directory), []
    except UnreadableCheckpointError:
        raise
    except CheckpointError as error:
        return None, [str(error)]
