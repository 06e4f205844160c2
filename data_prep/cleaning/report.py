"""What became of documents: by stage how many and how many bytes went in and came out, and why."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from esolm.data_prep.bad_documents import JsonLinesFile
from esolm.data_prep.cleaning import Drop
from esolm.data_prep.documents import Document

MOST_EXAMPLES = 5
"""Of each reason, from each task."""
MOST_CHARACTERS = 1000


@dataclass
class StageReport:
    """The figures of one stage; bytes are those of the texts in UTF-8."""

    name: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, other: "StageReport") -> None:
        """Add the figures of another task."""
        for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count

    def to_record(self) -> dict[str, Any]:
        """Return the figures as a JSON-serialisable record."""
        return asdict(self)


def num_bytes_of(text: str) -> int:
    """Return how many bytes a text takes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


class Reporter:
    """Counts what stages do in one task, and keeps some of what they leave out for the eye."""

    def __init__(self, names: Iterable[str], examples: JsonLinesFile) -> None:
        self.stages = {name: StageReport(name) for name in names}
        self._examples = examples

    def keep(self, name: str, before: int, after: int, changed: bool = False) -> None:
        """Count a document of so many bytes that came out with so many."""
        report = self.stages[name]
        report.documents_in += 1
        report.bytes_in += before
        report.documents_out += 1
        report.bytes_out += after
        report.changed += changed

    def drop(self, name: str, document: Document, why: Drop) -> None:
        """Count a document that is left out."""
        report = self.stages[name]
        report.documents_in += 1
        report.bytes_in += num_bytes_of(document.text)
        count = report.reasons[why.reason] = report.reasons.get(why.reason, 0) + 1
        if count <= MOST_EXAMPLES:
            example = {
                "stage": name,
                "reason": why.reason,
                **({"detail": why.detail} if why.detail else {}),
                **({"id": document.id} if document.id else {}),
                **document.place.to_record(),
                "text": document.text[:MOST_CHARACTERS],
            }
            self._examples.write(example)


def summed(reports: Iterable[Iterable[StageReport]]) -> list[StageReport]:
    """Return the figures of all tasks together, by stage in the order of the stages."""
    total: dict[str, StageReport] = {}
    for stages in reports:
        for stage in stages:
            total.setdefault(stage.name, StageReport(stage.name)).add(stage)
    return list(total.values())
