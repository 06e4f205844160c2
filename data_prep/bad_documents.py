"""Documents and files that cannot be read: an error, or left out, counted and listed."""

import contextlib
import json
import logging
from pathlib import Path
from typing import IO, Any

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import commit_stream, naming, temporary_path
from esolm.data_prep.formats import Place

POLICIES = ("error", "skip")
MOST_WARNINGS = 20

logger = logging.getLogger(__name__)


class RefusedError(DataError):
    """A bad document, or one more than is allowed, ends the task."""


class BadDocuments:
    """Decides about documents and files that cannot be read.

    policy: `error` or `skip`. most: how many are skipped before that is an error, too; None: any
    number. listing: the file that names each that is skipped, as JSON lines.
    """

    def __init__(
        self,
        policy: str = "error",
        most: int | None = None,
        listing: "JsonLinesFile | None" = None,
    ) -> None:
        if policy not in POLICIES:
            raise DataError(f"--on-bad-document is '{policy}'; give 'error' or 'skip'.")
        if most is not None and most < 0:
            raise DataError(f"--max-bad is {most}, must be at least 0.")
        self.count = 0
        self._policy, self._most, self._listing = policy, most, listing

    def report(self, place: Place, problem: str) -> None:
        """Count a bad document, or raise DataError, which names the place and the way out."""
        if self._policy == "error":
            raise RefusedError(
                f"{place}: {problem}. Repair it, or pass --on-bad-document skip to leave such "
                "documents out and have them counted."
            )
        self._leave_out(place, problem)

    def report_file(self, path: Path, error: DataError) -> None:
        """Count a file of which no more can be read, or raise its error again."""
        if self._policy == "error":
            raise RefusedError(
                f"{error} Or pass --on-bad-document skip, to leave out what of it cannot be read "
                "and have it counted."
            ) from error
        self._leave_out(Place(str(path)), str(error))

    def _leave_out(self, place: Place, problem: str) -> None:
        self.count += 1
        if self._listing is not None:
            self._listing.write({**place.to_record(), "reason": problem})
        if self.count <= MOST_WARNINGS:
            logger.warning("skipped %s: %s", place, problem)
        if self._most is not None and self.count > self._most:
            raise too_many(self.count, self._most, f"The last one is {place}: {problem}. ")


def too_many(count: int, most: int, example: str = "") -> RefusedError:
    """Return the error of more bad documents and files than were allowed."""
    return RefusedError(
        f"{count:,} documents and files are bad, more than --max-bad {most}. {example}Repair the "
        "input, or raise --max-bad."
    )


class JsonLinesFile:
    """A file of JSON lines that exists only when it is whole, and only if there is a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_path(path)
        self._stream: IO[str] | None = None

    def write(self, record: dict[str, Any]) -> None:
        """Add a line."""
        with naming(self.path):
            if self._stream is None:
                self._stream = open(self._temporary, "w", encoding="utf-8")  # noqa: SIM115
            self._stream.write(json.dumps(record) + "\n")

    def commit(self) -> None:
        """Make what was written durable under the final name, in place of what was there."""
        if self._stream is None:
            self.path.unlink(missing_ok=True)
            return
        commit_stream(self._stream, self._temporary, self.path)

    def discard(self) -> None:
        """Drop what was not committed."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # what was not written yet need not be
                self._stream.close()
            self._temporary.unlink(missing_ok=True)
