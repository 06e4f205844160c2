"""The documents of a row of tokens, and what was kept of them when they became tokens."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from esolm.data_prep.document_ends import ends_of
from esolm.data_prep.errors import DataError
from esolm.data_prep.metadata import metadata_lines
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.reader import SampleReader, content_of

MOST_LINES = 20


@dataclass(frozen=True)
class RowDocument:
    """A document, or a part of one, in a row.

    shard, place: where it stands, from 0, in the list of shards and in the shard. number: from 0,
    in the split. start, stop: its tokens in the row, eos included. is_begun, is_ended: whether its
    first and its last token are there.
    """

    shard: int
    place: int
    number: int
    start: int
    stop: int
    is_begun: bool
    is_ended: bool

    def __str__(self) -> str:
        cut = "" if self.is_begun else ", begun before"
        cut += "" if self.is_ended else ", goes on behind"
        return f"document {self.number:,}, tokens {self.start} to {self.stop - 1}{cut}"


def documents_of_row(reader: SampleReader, sequence: int) -> Iterator[RowDocument]:
    """Yields the documents of a row, from its left to its right.

    Raises DataError naming a damaged file.
    """
    dataset = reader.dataset
    shift = (reader.seq_len - content_of(reader.seq_len, reader.packing)) // 2  # of a wrapped row
    tokens = np.cumsum([0, *(shard.num_tokens for shard in dataset.shards)], dtype=np.int64)
    documents = np.cumsum([0, *(shard.num_documents for shard in dataset.shards)], dtype=np.int64)
    read_ends = lru_cache(2)(lambda shard: ends_of(dataset.path, dataset.shards[shard]))
    pieces = reader.pieces(np.array([sequence], dtype=np.int64))
    columns, starts, sizes = (a.tolist() for a in (pieces.columns, pieces.starts, pieces.sizes))
    for column, start, size in zip(columns, starts, sizes, strict=True):
        stop = start + size
        first, last = np.searchsorted(tokens, [start, stop - 1], side="right") - 1
        for shard in range(int(first), int(last) + 1):
            ends = tokens[shard] + read_ends(shard)
            begins = np.concatenate([tokens[shard : shard + 1], ends[:-1]])
            for place in np.flatnonzero((ends > start) & (begins < stop)).tolist():
                begin, end = int(begins[place]), int(ends[place])
                yield RowDocument(
                    shard,
                    place,
                    int(documents[shard]) + place,
                    shift + column + max(begin, start) - start,
                    shift + column + min(end, stop) - start,
                    begin >= start,
                    end <= stop,
                )


def kept_of(
    dataset: TokenDataset, documents: Sequence[RowDocument]
) -> dict[tuple[int, int], dict[str, Any]]:
    """Returns what was kept of documents, if anything was, by shard and place.

    Raises DataError naming a damaged file.
    """
    kept = {}
    for number in sorted({document.shard for document in documents}):
        shard = dataset.shards[number]
        places = {document.place for document in documents if document.shard == number}
        lines = metadata_lines(dataset.path, shard) if shard.metadata_name else iter(())
        for place, line in enumerate(islice(lines, max(places) + 1)):
            if place in places:
                kept[number, place] = _record(line, f"{dataset.path / shard.metadata_name}")
    return kept


def _record(line: bytes, path: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise DataError(f"{path} holds a line that is no JSON ({error}).") from error


def lines_of_row(reader: SampleReader, sequence: int) -> Iterator[str]:
    """Says it in words, of at most 20 documents."""
    documents = list(documents_of_row(reader, sequence))
    shown = documents[:MOST_LINES]
    kept = kept_of(reader.dataset, shown)
    for document in shown:
        found = kept.get((document.shard, document.place))
        yield f"  {document}{'' if found is None else f': {_words(found)}'}"
    if len(documents) > MOST_LINES:
        yield f"  and {len(documents) - MOST_LINES:,} more"


def _words(kept: dict[str, Any]) -> str:
    """Returns what was kept as JSON, in characters that every stream of UTF-8 takes."""
    return json.dumps(kept, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
