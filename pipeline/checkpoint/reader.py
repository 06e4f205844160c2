"""Reads a checkpoint from outside a run: full tensors in one process."""

from pathlib import Path
from typing import Any

from torch import Tensor

from esolm.data_prep.remote import is_url
from esolm.model.config import ModelConfig
from esolm.pipeline.checkpoint import commit, store
from esolm.pipeline.checkpoint.remote import fetch
from esolm.pipeline.data.reader import FORMER
from esolm.pipeline.errors import CheckpointError


class CheckpointReader:
    """Reads a run directory's newest valid checkpoint, or one checkpoint directory.

    What lies at a URL is first copied to `copies` or to the user's cache. Raises CheckpointError if
    there is no checkpoint or its content differs from the manifest.
    """

    def __init__(self, path: str | Path, copies: Path | None = None) -> None:
        path = fetch(str(path), copies) if is_url(path) else Path(path)
        commit.refuse_other(path)
        if (path / "checkpoints").is_dir():
            found = commit.newest_valid(path / "checkpoints")
            if found is None:
                raise CheckpointError(
                    f"{path} holds no valid checkpoint; esolm checkpoint ls {path} shows why"
                )
            self.directory, self.manifest = found
        else:
            self.directory, self.manifest = path, commit.read_manifest(path)
        problems = commit.verify_files(self.directory, self.manifest, sorted(self.manifest.files))
        if problems:
            raise CheckpointError("\n".join(problems))
        run = self.manifest.run
        self.step: int = run["step"]
        self.seq_len: int = run["seq_len"]
        self.model = ModelConfig(**run["model"])
        self.objective: dict[str, Any] = run["objective"]
        self.packing: str = (FORMER | run["data"])["packing"]
        self.data_path: Path | None = Path(run["data_path"]) if run["data_path"] else None

    @property
    def tokenizer_path(self) -> Path | None:
        """The directory of the run's own copy of the tokenizer; None if it has none."""
        copy = self.directory.parent.parent / "tokenizer"
        return copy if copy.is_dir() else None

    def tensors(self, state: str) -> dict[str, Tensor]:
        """Returns the full fp32 tensors of a state by canonical name.

        state: "weights", "ema", "exp_avg" or "exp_avg_sq".
        """
        return store.read_full(self.directory, state)
