"""What `data.verify` has a run read of its dataset before it trains on it."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch.distributed as dist

from esolm.data_prep.errors import DataError, EsolmError
from esolm.data_prep.files import content_problem, file_problem
from esolm.data_prep.layout import CHECKED_TOKENS
from esolm.data_prep.manifest import SPLITS
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.remote_folder import AbsentFileError

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
    for dataset in datasets:
        found = share_problems(dataset, verify, seed, on_bytes, rank, world_size)
        mine += [*found, dataset.advice] if found else []
    everywhere: list[list[str]] = [[] for _ in range(world_size)]
    dist.all_gather_object(everywhere, mine)
    if problems := [problem for found in everywhere for problem in found]:
        raise DataError("\n".join(dict.fromkeys(problems)))


def share_problems(
    dataset: TokenDataset, verify: str, seed: int, on_bytes: Callable[[int], None],
    rank: int, world_size: int,
) -> list[str]:  # fmt: skip
    """Says what is wrong with one rank's share of the shards, as far as `verify` looks at it."""
    problems: list[str] = []
    try:
        if verify == "sampled":
            problems += _sampled(dataset, seed, on_bytes, rank, world_size)
        if verify == "full":
            shards = dataset.manifest.shards[rank::world_size]
            files = [file for shard in shards for file in shard.files()]
            found = [_file_problem(dataset, *file, on_bytes) for file in files]
            problems += filter(None, found)
    except (EsolmError, OSError) as error:  # for all ranks to hear, which wait for this one
        return [str(error)]
    return problems


def _file_problem(
    dataset: TokenDataset, name: str, num_bytes: int, sha256: str, on_bytes: Callable[[int], None]
) -> str | None:
    remote = dataset.remote
    if remote is None:
        return file_problem(dataset.path / name, num_bytes, sha256, on_bytes)
    try:
        content = remote.content(name, num_bytes)
        return content_problem(f"{remote}/{name}", num_bytes, sha256, content, on_bytes)
    except AbsentFileError as error:
        return str(error)


def _sampled(
    opened: TokenDataset, seed: int, on_bytes: Callable[[int], None], rank: int, world_size: int
) -> Iterator[str]:
    for split in filter(opened.manifest.num_tokens, SPLITS):
        dataset = opened.other_split(split)
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
