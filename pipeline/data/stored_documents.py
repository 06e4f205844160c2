"""The documents of a dataset, one after the other, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat

import numpy as np
import numpy.typing as npt

from esolm.data_prep.document_ends import ends_of
from esolm.data_prep.errors import DataError
from esolm.data_prep.files import file_problem
from esolm.data_prep.layout import MEMBER_TOKENS, ShardInfo
from esolm.data_prep.manifest import repair_advice
from esolm.data_prep.metadata import metadata_lines
from esolm.pipeline.data.dataset import TokenDataset

Int64Array = npt.NDArray[np.int64]
BLOCK_TOKENS = 4 * MEMBER_TOKENS


@dataclass(frozen=True)
class StoredDocument:
    """A document of a split: its tokens, eos included, and what is kept of it.

    parts: gives its tokens in parts [N], again at each call. kept: a line, or None.
    """

    num_tokens: int
    parts: Callable[[], Iterator[Int64Array]]
    kept: bytes | None


class _Blocks:
    """A split in blocks, of which the last two that were read stay in memory."""

    def __init__(self, dataset: TokenDataset) -> None:
        self._block = lru_cache(2)(
            lambda number: dataset.read(
                number * BLOCK_TOKENS,
                min(BLOCK_TOKENS, dataset.num_tokens - number * BLOCK_TOKENS),
            )
        )

    def parts(self, start: int, stop: int) -> Iterator[Int64Array]:
        for number in range(start // BLOCK_TOKENS, (stop - 1) // BLOCK_TOKENS + 1):
            first = number * BLOCK_TOKENS
            yield self._block(number)[max(0, start - first) : stop - first]


def stored_documents(
    dataset: TokenDataset, on_tokens: Callable[[int], None]
) -> Iterator[StoredDocument]:
    """Yields the documents of a split in order, every file compared with its checksum.

    on_tokens: is told the tokens of some documents that are done. Raises DataError naming a damaged
    file.
    """
    blocks, first, untold = _Blocks(dataset), 0, 0
    for shard in dataset.shards:
        _check_files(dataset, shard)
        kept = metadata_lines(dataset.path, shard) if shard.metadata_name else repeat(None)
        begin = 0
        for end, line in zip(ends_of(dataset.path, shard).tolist(), kept, strict=False):
            yield StoredDocument(end - begin, _parts(blocks, first + begin, first + end), line)
            untold += end - begin
            begin = end
            if untold >= BLOCK_TOKENS:
                on_tokens(untold)
                untold = 0
        first += shard.num_tokens
    on_tokens(untold)


def _parts(blocks: _Blocks, start: int, stop: int) -> Callable[[], Iterator[Int64Array]]:
    return lambda: blocks.parts(start, stop)


def _check_files(dataset: TokenDataset, shard: ShardInfo) -> None:
    """Compares with their sha256 the files that have no checksums for parts of them."""
    for name, num_bytes, sha256 in shard.files():
        if name in (shard.name, shard.crc_name) and shard.crc_name:
            continue  # the reader of tokens sees to them
        problem = file_problem(dataset.path / name, num_bytes, sha256, lambda num_bytes: None)
        if problem:
            raise DataError(f"{problem}\n{repair_advice(dataset.path)}")
