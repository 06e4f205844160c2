"""The errors that a user of the training pipeline can cause, and the exit codes of a run."""

from collections.abc import Sequence
from typing import Self

from esolm.data_prep.errors import DataError, EsolmError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EsolmError",
    "ExportError",
    "ImportCheckpointError",
    "UnreadableCheckpointError",
]

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 64
EXIT_RESUME_ME = 85


class ConfigError(EsolmError):
    """A configuration that cannot run; carries every problem found, not just the first."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class CheckpointError(EsolmError):
    """A checkpoint is missing, damaged or does not fit the run."""


class UnreadableCheckpointError(CheckpointError):
    """A checkpoint could not be read, which says nothing about its content."""

    @classmethod
    def of(cls, path: object, error: OSError) -> Self:
        """What is said of a path that the file system does not give."""
        return cls(
            f"{path} cannot be read ({error.strerror or error}). This does not prove that it is "
            "damaged, so it stays as it is: mend the access to it, or move the checkpoint out of "
            "checkpoints/ to go on from an older one"
        )


class ExportError(EsolmError):
    """A bundle failed its gate or cannot be read."""


class ImportCheckpointError(EsolmError):
    """A published checkpoint is damaged, hostile, or not what an import can represent."""

    exit_code = EXIT_BAD_INPUT
