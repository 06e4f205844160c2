"""quarantine.jsonl of a run: the damaged parts of its datasets that it went on without."""

import fcntl
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esolm.pipeline.data.damage import CUT_SHORT
from esolm.pipeline.data.quarantine import Met
from esolm.pipeline.run.history import append_line, parse_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuarantineFile:
    """Lists each damaged part once, whichever ranks meet it, at this start or at one before."""

    path: Path
    rank: int

    def add(self, met: Met) -> None:
        """Write a line and a warning, unless there is a line of this part."""
        part = met.part
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "shard": part.shard,
            "member": part.member,
            "byte": part.byte,
            "problem": part.problem,
            "source": met.source,
            "split": met.split,
            "sample": met.sample,
            "rank": self.rank,
        }
        try:
            is_new = self._append(entry)
        except OSError as error:
            logger.warning("%s cannot be written (%s); training goes on", self.path, error)
            is_new = True
        if is_new:
            logger.warning(
                "%s; rows that touch it are replaced by others of the same source, and %s lists "
                "it. %s", part, self.path, part.advice,
            )  # fmt: skip

    def _append(self, entry: dict[str, Any]) -> bool:
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if any(_place_of(parse_line(line)) == _place_of(entry) for line in file):
                return False
            append_line(self.path, entry)
        return True


def _place_of(entry: dict[str, Any]) -> tuple[Any, Any]:
    """Return what a part is known by; of a shard that was cut short, the shard."""
    return entry.get("shard"), "" if entry.get("problem") == CUT_SHORT else entry.get("byte")
