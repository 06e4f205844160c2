"""What is checked of the dataset before a run trains on it: its tokenizer, and as much as asked."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch.distributed as dist

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import CHECKED_TOKENS
from esolm.data_prep.manifest import SPLITS, read_manifest, repair_advice
from esolm.data_prep.verify import file_problem
from esolm.pipeline.data.dataset import TokenDataset

SAMPLED_PARTS = 16
"""The parts of 1,024 tokens that `sampled` reads of every shard, at random places."""


def check_data(path: str, verify: str, seed: int, on_bytes: Callable[[int], None]) -> None:
    """Checks a dataset, each rank its share of the shards; collective over all ranks.

    verify: `data.verify`. on_bytes: called with the number of bytes after each read. Raises
    DataError on every rank, with what all of them found.
    """
    data, rank, world_size = Path(path), dist.get_rank(), dist.get_world_size()
    everywhere: list[list[str]] = [[] for _ in range(world_size)]
    dist.all_gather_object(everywhere, _problems(data, verify, seed, on_bytes, rank, world_size))
    if problems := [problem for found in everywhere for problem in found]:
        raise DataError("\n".join([*problems, repair_advice(data)]))


def _problems(
    data: Path, verify: str, seed: int, on_bytes: Callable[[int], None], rank: int, world_size: int
) -> list[str]:
    try:
        manifest = read_manifest(data)
        problems: list[str] = []
        if verify == "sampled":
            problems += _sampled(data, seed, on_bytes, rank, world_size)
        if verify == "full":
            shards = [shard for split in SPLITS for shard in manifest.splits.get(split, [])]
            for shard in shards[rank::world_size]:
                for name, size, sha256 in shard.files():
                    problem = file_problem(data / name, size, sha256, on_bytes)
                    problems += [problem] if problem else []
    except (DataError, OSError) as error:
        return [str(error)]
    return problems


def _sampled(
    data: Path, seed: int, on_bytes: Callable[[int], None], rank: int, world_size: int
) -> Iterator[str]:
    for split in SPLITS:
        if not read_manifest(data).num_tokens(split):
            continue
        dataset = TokenDataset(data, split)
        ends = np.cumsum([shard.num_tokens for shard in dataset.shards])
        for number in range(rank, len(ends), world_size):
            draws = np.random.default_rng([seed, number])
            first = int(ends[number]) - dataset.shards[number].num_tokens
            last = max(first + 1, int(ends[number]) - CHECKED_TOKENS)
            size = min(CHECKED_TOKENS, int(ends[number]) - first)
            try:
                dataset.read_many(draws.integers(first, last, SAMPLED_PARTS), size)
            except DataError as error:
                yield str(error)
            on_bytes(SAMPLED_PARTS * size)
