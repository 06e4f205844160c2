"""The full tensors of a checkpoint, whichever parallel layout wrote them."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.pipeline.errors import ConfigError

# The names of a checkpoint's states on the command line, and in the checkpoint.
STATES = {"ema": "ema", "raw": "weights"}


class Source(Protocol):
    """What an export needs to know of a trained network."""

    @property
    def step(self) -> int: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def objective(self) -> dict[str, Any]:
        """The objective of the run: `name`, and `variant` and `alpha_0` (esolm), `prepend` (ar)."""
        ...

    @property
    def seq_len(self) -> int: ...

    @property
    def packing(self) -> str:
        """`data.packing` of the run; `continuous` where it is not known."""
        ...

    @property
    def tokenizer_path(self) -> Path | None: ...

    @property
    def data_path(self) -> Path | None: ...

    def tensors(self, state: str) -> dict[str, Tensor]:
        """Returns the full fp32 tensors of the state `ema` or `weights` by canonical name."""
        ...


def open_source(checkpoint: str | Path) -> Source:
    """Opens the newest valid checkpoint of a run directory or URL, or one checkpoint directory.

    Raises CheckpointError if there is none.
    """
    from esolm.pipeline.checkpoint.reader import CheckpointReader

    source: Source = CheckpointReader(checkpoint)
    return source


def load_tensors(source: Source, weights: str) -> dict[str, Tensor]:
    """Returns the tensors of `ema` or `raw` weights. Raises ConfigError for any other name."""
    if weights not in STATES:
        raise ConfigError(f"weights '{weights}' is unknown; choose of {', '.join(STATES)}")
    return source.tensors(STATES[weights])
