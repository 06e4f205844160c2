"""The documents of a row of tokens, and what was kept of them when they became tokens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from esolm.data_prep.errors import DataError
from esolm.data_prep.metadata import metadata_lines
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.document_lengths import ends_of

MOST_LINES = 20


@dataclass(frozen=True)
class RowDocument:
    """A document, or a part of one, in a row.

    number: from 0, in the split. start, stop: its tokens in the row, eos included. is_begun,
    is_ended: whether its first and its last token are in the row. kept: what was kept of it.
    """

    number: int
    start: int
    stop: int
    is_begun: bool
    is_ended: bool
    kept: dict[str, Any] | None

    def __str__(self) -> str:
        cut = "" if self.is_begun else ", begun before"
        cut += "" if self.is_ended else ", goes on behind"
        kept = "" if self.kept is None else f": {_shown(self.kept)}"
        return f"document {self.number:,}, tokens {self.start} to {self.stop - 1}{cut}{kept}"


def _shown(kept: dict[str, Any]) -> str:
    """Returns what was kept as JSON in characters that every stream of UTF-8 takes."""
    shown = json.dumps(kept, ensure_ascii=False)
    return shown.encode("utf-8", "backslashreplace").decode()


def documents_of_row(dataset: TokenDataset, start: int, length: int) -> Iterator[RowDocument]:
    """Yields the documents of `length` tokens of a split from its token `start` on.

    Raises DataError naming a damaged file.
    """
    first, number = 0, 0
    for shard in dataset.shards:
        if first < start + length and start < first + shard.num_tokens:
            ends = first + ends_of(dataset.path, shard)
            begins = np.concatenate([[first], ends[:-1]])
            found = np.flatnonzero((ends > start) & (begins < start + length)).tolist()
            lines: Iterator[bytes | None] = iter([None] * len(found))
            if shard.metadata_name:
                lines = islice(metadata_lines(dataset.path, shard), found[0], found[-1] + 1)
            for each, line in zip(found, lines, strict=True):
                begin, end = int(begins[each]), int(ends[each])
                yield RowDocument(
                    number + each,
                    max(begin, start) - start,
                    min(end, start + length) - start,
                    begin >= start,
                    end <= start + length,
                    None if line is None else _kept(line, f"{dataset.path / shard.metadata_name}"),
                )
        first, number = first + shard.num_tokens, number + shard.num_documents


def _kept(line: bytes, path: str) -> dict[str, Any]:
    try:
        kept = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} holds a line that is no JSON ({error}).") from error
    return dict(kept)


def lines_of_row(dataset: TokenDataset, start: int, length: int) -> Iterator[str]:
    """Says it in words, of at most 20 documents."""
    documents = documents_of_row(dataset, start, length)
    for document in islice(documents, MOST_LINES):
        yield f"  {document}"
    if more := sum(1 for _ in documents):
        yield f"  and {more:,} more"
