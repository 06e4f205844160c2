"""The rows that are measured: token sequences by their number, and their size as text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esolm.data_prep.tokenizers import Tokenizer, load_tokenizer
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.index import CONTINUOUS
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.errors import ConfigError
from esolm.pipeline.evaluate.subject import Subject

Int64Array = NDArray[np.int64]


class Rows(Protocol):
    """The sequences 0 .. num_rows - 1, each of seq_len tokens."""

    @property
    def name(self) -> str: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def seq_len(self) -> int: ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        ...

    def read(self, index: Int64Array) -> Int64Array:
        """Returns the tokens [N, L] of the rows with the numbers [N]."""
        ...


@dataclass(frozen=True)
class DatasetRows:
    """The first sequences of a split of a prepared dataset, in the order of the stream."""

    name: str
    num_rows: int
    reader: SampleReader
    tokenizer: Tokenizer

    @property
    def seq_len(self) -> int:
        return self.reader.seq_len

    def read(self, index: Int64Array) -> Int64Array:
        return self.reader.read(index)


@dataclass(frozen=True)
class ArrayRows:
    """Rows that are in memory. tokens: int64 [N, L]."""

    name: str
    tokens: Int64Array
    tokenizer: Tokenizer

    @property
    def num_rows(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        return int(self.tokens.shape[1])

    def read(self, index: Int64Array) -> Int64Array:
        rows: Int64Array = self.tokens[index]
        return rows


def dataset_rows(
    path: Path,
    split: str,
    subject: Subject,
    seq_len: int | None,
    limit: int | None,
    packing: str | None = None,
) -> DatasetRows:
    """Returns the rows of a split of a dataset, at most `limit` of them.

    packing: as `data.packing` makes them; by default as the network was trained. Raises DataError
    for a bad dataset and ConfigError for one of another vocabulary.
    """
    dataset = TokenDataset(path, split)
    subject.check_vocabulary(
        path, dataset.vocab_size, dataset.mask_id, dataset.tokenizer_fingerprint
    )
    packing = packing or subject.packing
    reader = SampleReader(dataset, seq_len or subject.seq_len, 0, "none", packing)
    return DatasetRows(
        f"{path} ({split}{'' if packing == CONTINUOUS else f', {packing}'})",
        limited(reader.num_sequences, limit),
        reader,
        load_tokenizer(dataset.tokenizer_directory),
    )


def limited(num_rows: int, limit: int | None) -> int:
    if limit is not None and limit < 1:
        raise ConfigError(f"--samples-limit is {limit}; it must be at least 1")
    return num_rows if limit is None else min(num_rows, limit)


def chunks(num_rows: int, rows_per_chunk: int) -> list[Int64Array]:
    """Cuts the row numbers into pieces that depend on nothing but these two numbers."""
    starts = range(0, num_rows, rows_per_chunk)
    return [np.arange(i, min(i + rows_per_chunk, num_rows), dtype=np.int64) for i in starts]
