"""Commands whose output is read as a tar: `pipe:CMD`, as webdataset has them.

A command is run by the shell, so it is taken from what a user wrote alone, never from a list or
another file. Its length is not known: in shares of a corpus it counts as 1 GiB, which one task
reads as a whole.
"""

import io
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from esolm.data_prep.errors import DataError, EsolmError

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import WriteableBuffer

MARK = "pipe:"
NOMINAL_BYTES = 1 << 30
BUFFER_BYTES = 1 << 20
LEAST_BYTES = 512
"""So much is waited for, so that what an output holds is seen in what is read first."""
DRAINED_BYTES = 1 << 26
"""Of a damaged output so much more is read, for a command that fails says so at its end."""


@dataclass(frozen=True)
class PipedCommand:
    """Stands for a path where the output of a command is read in place of a file."""

    given: str

    def __str__(self) -> str:
        return self.given

    @property
    def command(self) -> str:
        """What the shell runs."""
        return self.given[len(MARK) :]


def is_piped(given: str | Path | PipedCommand) -> bool:
    """Say whether this is a command, and no file or address."""
    if isinstance(given, str):
        return given.startswith(MARK) and not _is_file(given)
    return isinstance(given, PipedCommand)


def _is_file(given: str) -> bool:
    # A pattern of the shell may stand for a file of such a name, which nobody meant to run.
    try:
        return Path(given).exists()
    except OSError:  # too long for a name
        return False


def commands_of(given: str) -> Iterator[PipedCommand]:
    """Yield the commands behind an input, of which braces make several, as in webdataset.

    Raises DataError if one is empty or braces do not match.
    """
    from webdataset.shardlists import expand_urls

    try:
        found = expand_urls(given)
    except ValueError as error:
        raise DataError(f"{given}: braces that name several commands do not match.") from error
    for each in map(str, found):
        if not each.startswith(MARK) or not each[len(MARK) :].strip():
            raise DataError(
                f"{given}: '{each}' is no command. Write pipe:CMD, several of them by {{0..9}} or "
                "with :: between them."
            )
        yield PipedCommand(each)


def open_output(path: PipedCommand) -> IO[bytes]:
    """Run a command and return its output as a stream.

    Reading to the end raises EsolmError, which names the command and its exit code, if it fails.
    """
    return _Output(_RawOutput(path), BUFFER_BYTES)


class _RawOutput(io.RawIOBase):
    def __init__(self, path: PipedCommand) -> None:
        from webdataset.gopen import Pipe

        self._path, self._place = path, 0
        # The library's own look at the exit code passes over 141.
        self._pipe: Any = Pipe(path.command, mode="rb", shell=True, ignore_errors=True)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        content = b""
        while len(content) < min(LEAST_BYTES, len(view)):
            more = self._pipe.stream.read1(len(view) - len(content))
            if not more:
                break
            content += more
        if not content and (status := self._pipe.proc.wait()):
            raise EsolmError(
                f"{self._path} {_ending(status)} after {self._place:,} bytes. Run that command by "
                "itself to see why; then run the same `esolm` command again: finished tasks are "
                "skipped."
            )
        view[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            # Of one whose output nobody wants any more, the shell may wait for what writes nothing.
            self._pipe.proc.terminate()
            self._pipe.close()
        super().close()


def _ending(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"failed with exit code {status}"


class _Output(io.BufferedReader):
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        try:
            # Not where the reader has had enough, which is no Exception.
            if isinstance(error, Exception) and not _is_told(error):
                self._drain()
        finally:
            super().__exit__(kind, error, trace)

    def _drain(self) -> None:
        left = DRAINED_BYTES
        while left > 0 and (block := self.read(min(left, BUFFER_BYTES))):
            left -= len(block)


def _is_told(error: Exception) -> bool:
    """Say whether the command's own failure is the error, or another that ends all."""
    return isinstance(error, EsolmError) and not isinstance(error, DataError)
