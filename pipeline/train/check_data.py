"""What `data.verify` has a run read of its dataset before it trains on it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist

from esolm.data_prep.errors import DataError
from esolm.data_prep.files import file_problem
from esolm.data_prep.layout import CHECKED_TOKENS
from esolm.data_prep.manifest import SPLITS, Manifest, repair_advice
from esolm.pipeline.data.dataset import TokenDataset

SAMPLED_PARTS = 16
"""The parts of 1,024 tokens that `sampled` reads of every shard, at random places."""


def check_data(
    datasets: Sequence[TokenDataset], verify: str, seed: int, on_bytes: Callable[[int], None]
) -> None:
    """Checks datasets, each rank its share of the shards; collective over all ranks.

    verify: `data.verify`; `none` and `sizes` ask for nothing here. on_bytes: called with the number
    of bytes after each read. Raises DataError on every rank, with what all of them found.
    """
    if verify not in ("sampled", "full"):
        return
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine: list[str] = []
    for data, manifest in ((dataset.path, dataset.manifest) for dataset in datasets):
        found = share_problems(data, manifest, verify, seed, on_bytes, rank, world_size)
        mine += [*found, repair_advice(data)] if found else []
    everywhere: list[list[str]] = [[] for _ in range(world_size)]
    dist.all_gather_object(everywhere, mine)
    if problems := [problem for found in everywhere for problem in found]:
        raise DataError("\n".join(dict.fromkeys(problems)))


def share_problems(
    data: Path, manifest: Manifest, verify: str, seed: int, on_bytes: Callable[[int], None],
    rank: int, world_size: int,
) -> list[str]:  # fmt: skip
    """Says what is wrong with one rank's share of the shards, as far as `verify` looks at it."""
    problems: list[str] = []
    try:
        if verify == "sampled":
            problems += _sampled(data, manifest, seed, on_bytes, rank, world_size)
        if verify == "full":
            files = [file for shard in manifest.shards[rank::world_size] for file in shard.files()]
            found = [
                file_problem(data / name, size, sha256, on_bytes) for name, size, sha256 in files
            ]
            problems += filter(None, found)
    except (DataError, OSError) as error:  # for all ranks to hear, which wait for this one
        return [str(error)]
    return problems


def _sampled(
    data: Path, manifest: Manifest, seed: int, on_bytes: Callable[[int], None],
    rank: int, world_size: int,
) -> Iterator[str]:  # fmt: skip
    for split in filter(manifest.num_tokens, SPLITS):
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
