"""What a run compiles: with which backend, where it is kept, and what it took."""

import logging
import os

import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from esolm.model.compiling import compile_seconds, num_graphs
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.directory import RunDirectory
from esolm.pipeline.run.sections import TrainSection
from esolm.pipeline.train.kernels import LEFT_OUT

logger = logging.getLogger(__name__)

CACHE = "TORCHINDUCTOR_CACHE_DIR"
_kept: str | None = None


def backend_of(train: TrainSection, device: torch.device) -> str:
    """Returns the backend of torch.compile that a run asks for, or "" if it asks for none."""
    is_asked = train.compile in ("always", "strict")
    is_asked |= train.compile == "auto" and device.type == "cuda"
    return train.compile_backend if is_asked else ""


def keep_compiled(directory: RunDirectory) -> None:
    """Has inductor keep its kernels in the run directory, unless the environment names a place.

    So what one rank has compiled serves the others of its kind, and every restart.
    """
    # torch itself names its default there as soon as it is imported as a whole.
    global _kept
    if os.environ.get(CACHE, "") in ("", default_cache_dir(), _kept):
        os.environ[CACHE] = _kept = str(directory.compiled.absolute())


def refuse_if_strict(train: TrainSection, kernels: dict[str, str]) -> None:
    """Raises ConfigError if what must be compiled was left out."""
    if train.compile == "strict" and kernels["compiled"].startswith(LEFT_OUT):
        raise ConfigError(
            f"train.compile is strict, and compiled pieces were {kernels['compiled']}. Mend that "
            "(inductor needs a C compiler on every node), or set train.compile=auto, which goes on "
            "without."
        )


class GraphReport:
    """Logs how many graphs there are and what they took, each time that there are more."""

    def __init__(self) -> None:
        self._told = 0

    def tell(self) -> None:
        found = num_graphs()
        if found > self._told:
            logger.info("compiled %d graphs so far, in %.1f s", found, compile_seconds())
            self._told = found
