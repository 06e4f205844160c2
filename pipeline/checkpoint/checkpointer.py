"""Saves and restores a run: fragments, progress and the commit protocol in one place."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.checkpoint import commit, store
from pipeline.errors import CheckpointError
from pipeline.parallel import zero
from pipeline.parallel.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """Progress of a run and what its checkpoint depends on; JSON in the manifest.

    data: state of the sample reader. model, objective: as dictionaries. tokenizer: fingerprint.
    """

    step: int
    consumed_samples: int
    tokens: int
    seq_len: int
    model: dict[str, Any]
    objective: dict[str, Any]
    data: dict[str, Any]
    data_path: str
    tokenizer: str


class Checkpointer:
    """Checkpoints of one run directory. Every method is collective over all ranks."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # Plans and checksums are Python objects: they travel over gloo, also between GPUs' ranks.
        self.group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None

    def save(self, engine: Engine, state: RunState) -> Path:
        """Writes and commits a checkpoint; on return it is durable and old ones are retired."""
        staging = commit.step_directory(self.directory, state.step).with_suffix(".tmp")
        if self.rank == 0:
            commit.begin(self.directory, state.step)
        dist.barrier(group=self.group)
        store.write(staging, zero.fragments(engine), self.group)
        files = self._digests(staging)
        if self.rank == 0:
            commit.commit(staging, commit.Manifest(state.step, files, asdict(state)))
            commit.retain(self.directory, self.keep)
        dist.barrier(group=self.group)
        return commit.step_directory(self.directory, state.step)

    def newest(self) -> tuple[Path, RunState] | None:
        """The checkpoint to resume from, the same on every rank."""
        found: list[Any] = [commit.newest_valid(self.directory) if self.rank == 0 else None]
        dist.broadcast_object_list(found, src=0, group=self.group)
        if found[0] is None:
            return None
        directory, manifest = found[0]
        return directory, RunState(**manifest.run)

    def load(self, engine: Engine, directory: Path, state: RunState) -> None:
        """Restores weights, moments and EMA into whatever layout the engine has.

        Raises CheckpointError, on every rank, if a file's content is not what was written.
        """
        self._verify(directory)
        store.read(directory, zero.fragments(engine), self.group)
        zero.publish_weights(engine, state.step)

    def _digests(self, staging: Path) -> dict[str, dict[str, Any]]:
        """Sizes and checksums of all files; each rank reads back those it wrote."""
        mine = sorted(staging.glob(f"__{self.rank}_*"))
        if self.rank == 0:
            mine.append(staging / ".metadata")
        gathered: list[dict[str, dict[str, Any]]] = [{} for _ in range(self.world_size)]
        dist.all_gather_object(
            gathered, {path.name: commit.digest(path) for path in mine}, group=self.group
        )
        return {name: entry for part in gathered for name, entry in part.items()}

    def _verify(self, directory: Path) -> None:
        manifest = commit.read_manifest(directory)
        mine = sorted(manifest.files)[self.rank :: self.world_size]
        gathered: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(
            gathered, commit.verify_files(directory, manifest, mine), group=self.group
        )
        problems = [problem for part in gathered for problem in part]
        if problems:
            raise CheckpointError(
                "\n".join(problems) + f"\nremove {directory} to resume from an older checkpoint"
            )
