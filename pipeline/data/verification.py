"""What a start checks of a dataset's content: every byte of it, or blocks of each shard."""

import logging
from collections.abc import Sequence

import numpy as np

from data_prep.errors import DataError
from data_prep.layout import BLOCK_TOKENS
from data_prep.manifest import repair_advice
from data_prep.progress import ProgressBar
from data_prep.verify import damaged_files
from pipeline.data.dataset import TokenDataset

SAMPLED_BLOCKS = 64
"""The blocks of each shard that are read when content is sampled."""

logger = logging.getLogger(__name__)


def check_content(splits: Sequence[TokenDataset], how: str, rank: int, num_ranks: int) -> None:
    """Check this rank's share of the shards of splits; `none` and `sizes` read no content.

    Raises DataError, which names every file of the share that is damaged.
    """
    check = {"full": _full, "sampled": _sampled}.get(how)
    if check is None:
        return
    if problems := [each for split in splits for each in check(split, rank, num_ranks)]:
        raise DataError("\n".join(problems))


def _full(dataset: TokenDataset, rank: int, num_ranks: int) -> list[str]:
    files = [file for shard in dataset.shards for file in shard.files()][rank::num_ranks]
    num_bytes = sum(size for _, size, _ in files)
    label = f"verify {dataset.split}"
    with ProgressBar(label, num_bytes, in_bytes=True, shown=rank == 0) as progress:
        problems = damaged_files(dataset.path, files, progress.advance)
    return [*problems, repair_advice(dataset.path)] if problems else []


def _sampled(dataset: TokenDataset, rank: int, num_ranks: int) -> list[str]:
    """Read the first block, the last one and others between, which are others at every start."""
    if not all(shard.crcs_name for shard in dataset.shards):
        logger.warning(
            "%s has no checksums of blocks (format 1): of its shards only the sizes were checked; "
            "data.verify=full checks every byte", dataset.path
        )  # fmt: skip
        return []
    checked = TokenDataset(dataset.path, dataset.split)
    random = np.random.default_rng()
    problems, start = [], 0
    for number, shard in enumerate(dataset.shards):
        if number % num_ranks == rank:
            last = (shard.num_tokens - 1) // BLOCK_TOKENS
            others = random.integers(0, last + 1, SAMPLED_BLOCKS - 2)
            blocks = np.unique([0, last, *others]) if last >= SAMPLED_BLOCKS else range(last + 1)
            try:
                for block in blocks:
                    checked.read(start + int(block) * BLOCK_TOKENS, 1)
            except DataError as error:
                problems.append(str(error))
        start += shard.num_tokens
    return problems
