"""Copies committed checkpoints to an fsspec URL in the background of the training."""

import logging
import threading
import time
from pathlib import Path

from esolm.data_prep.remote import shown
from esolm.pipeline.checkpoint import commit
from esolm.pipeline.checkpoint.remote import TOKENIZER, RemoteRun, pull
from esolm.pipeline.errors import CheckpointError

logger = logging.getLogger(__name__)


class Mirror:
    """A thread of rank 0 that brings URL/checkpoints/ up to what the run directory holds.

    A server that is gone, full or slow costs the training nothing: the failure is logged as a
    warning, and everything that is missing is tried again after the next commit.
    """

    def __init__(self, url: str, run: Path, retention: commit.Retention) -> None:
        self.url, self._run, self._retention = url, run, retention
        self.newest_step: int | None = None
        """The newest step whose checkpoint lies there whole, as far as is known."""
        self.copying: frozenset[str] = frozenset()
        """Names of checkpoints that must not be removed here now."""
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._closed = False
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def wake(self) -> None:
        """Tells the thread that there may be something to copy."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Waits until all is copied, or has failed, but not longer than so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._done == self._asked, seconds):
                logger.warning(
                    "%s does not hold all checkpoints of %s yet and is not waited for after %.0f "
                    "s; the next start of this run copies the rest",
                    shown(self.url), self._run, seconds,
                )  # fmt: skip
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._done < self._asked)
                asked = self._asked
            if self._closed:
                return
            try:
                self._synchronise()
            except (CheckpointError, OSError) as error:
                logger.warning(
                    "checkpoints could not be copied to %s: %s; those in %s stand, and it is tried "
                    "again after the next one", shown(self.url), error, self._run,
                )  # fmt: skip
            self.copying = frozenset()
            with self._changed:
                self._done = asked
                self._changed.notify_all()

    def _synchronise(self) -> None:
        """Copies what is missing, the newest first, and removes what retention gives up."""
        remote, done = RemoteRun(self.url), set[str]()
        while (directory := self._next(done)) is not None:
            done.add(directory.name)
            self._copy(remote, directory)
        self._retire(remote)

    def _next(self, done: set[str]) -> Path | None:
        """Returns the newest checkpoint not looked at yet; it is kept here until it is copied."""
        for directory in reversed(commit.committed(self._run / "checkpoints")):
            if directory.name not in done and not self._closed:
                self.copying = frozenset({directory.name})
                return directory
        return None

    def _copy(self, remote: RemoteRun, directory: Path) -> None:
        """Copies a checkpoint, its manifest last, unless it is there already or damaged here."""
        try:
            manifest = commit.read_manifest(directory)
        except CheckpointError:
            return
        if _whole(remote, directory.name) != manifest:
            self._copy_companions(remote)
            started, target = time.monotonic(), f"checkpoints/{directory.name}"
            if commit.MANIFEST in remote.files(target):
                remote.remove(directory.name)
            for name in [*sorted(manifest.files), commit.MANIFEST]:
                remote.put(directory / name, f"{target}/{name}")
            remote.manifest(directory.name)
            seconds = time.monotonic() - started
            logger.info("%s/%s was copied in %.1f s", remote.url, target, seconds)
        self.newest_step = max(self.newest_step or 0, manifest.step)

    def _copy_companions(self, remote: RemoteRun) -> None:
        """Copies the files of the tokenizer and the configuration that are not there yet."""
        sources = [*(self._run / TOKENIZER).glob("*"), *self._run.glob("config.yaml")]
        present = {*remote.files(TOKENIZER), *remote.files("")}
        for source in sources:
            if source.name not in present:
                remote.put(source, str(source.relative_to(self._run)))

    def _retire(self, remote: RemoteRun) -> None:
        found = {name: _whole(remote, name) for name in remote.checkpoints()}
        whole = {name: manifest for name, manifest in found.items() if manifest is not None}
        for name in self._retention.superseded(whole):
            remote.remove(name)


def _whole(remote: RemoteRun, name: str) -> commit.CheckpointManifest | None:
    """Returns the manifest of a checkpoint at the mirror, or None if it is not whole there.

    A server that does not answer raises CheckpointError, as it does everywhere.
    """
    if commit.MANIFEST not in remote.files(f"checkpoints/{name}"):
        return None
    try:
        return remote.manifest(name)
    except CheckpointError:
        remote.checkpoints()  # raises if it was the server
        return None


def newest_wanted(
    url: str, checkpoints: Path
) -> tuple[tuple[str, commit.CheckpointManifest] | None, str]:
    """Returns the mirror's newest checkpoint, if there is one, or why that is not known."""
    try:
        return RemoteRun(url).newest(), ""
    except CheckpointError as error:
        return None, (
            f"{checkpoints} holds no valid checkpoint, and its mirror cannot be asked for one: "
            f"{error}. To start without it, empty checkpoint.mirror."
        )


def pull_or_problem(
    url: str, checkpoint: str, name: str, into: Path, manifest: commit.CheckpointManifest
) -> list[str]:
    """Copies one file here and returns what went wrong, for all ranks to hear."""
    try:
        return pull(RemoteRun(url), checkpoint, name, into, manifest)
    except (CheckpointError, OSError) as error:
        return [str(error)]
