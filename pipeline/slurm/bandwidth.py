"""Measures the all-reduce bandwidth within nodes and between neighbours, to find a slow node."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.parallel.bootstrap import ProcessInfo, device_of, process_info

MEGABYTES = {"cuda": 256, "cpu": 16}
REPEATS = 5
LEAVE_SECONDS = 10


class UnmeasuredError(Exception):
    """The node could not be measured, and the fault may lie elsewhere."""


class UnmetError(UnmeasuredError):
    """This rank could not reach the other ranks."""


@dataclass(frozen=True)
class RankPosition:
    """The place of this rank among the others. patience: the longest time a step may take."""

    rank: int
    world_size: int
    ranks_per_node: int
    device: torch.device
    patience: timedelta

    @property
    def node(self) -> int:
        return self.rank // self.ranks_per_node

    @property
    def num_nodes(self) -> int:
        return self.world_size // self.ranks_per_node


def bandwidth_problems(
    least_gb_per_second: float,
    ranks_per_node: int,
    on_gpus: bool,
    found: list[str],
    patience: timedelta,
) -> list[str]:
    """Says what is wrong with this rank's node; collective over all ranks of the job step.

    found: the problems that this rank already knows of. The ranks exchange them first, because one
    broken node would make a collective fail on every node. Then each node is measured alone, and
    after that together with each of its two neighbours in a ring. A node is to blame if it fails or
    is slow alone, or with every neighbour. If two neighbouring nodes are slow together, both are to
    blame. If two fail together, neither is, because either may be at fault.

    Raises UnmeasuredError if problems of other nodes prevent the measurement.
    """
    info = process_info()
    device, found = _usable_device(info, on_gpus, found)
    place = RankPosition(info.rank, info.world_size, ranks_per_node, device, patience)
    with _meeting(place) as store:
        told = _exchange(store, place, found)
        problems = _told_of(place, told)
        if not problems:
            problems = _slowness(store, place, least_gb_per_second)
    return problems


def _usable_device(
    info: ProcessInfo, on_gpus: bool, found: list[str]
) -> tuple[torch.device, list[str]]:
    try:
        device = device_of(info)
        torch.ones(1, device=device).item()
    except (RuntimeError, ConfigError) as error:
        return torch.device("cpu"), [*found, f"rank {info.rank} cannot compute: {_said(error)}"]
    if on_gpus and device.type == "cpu":
        found = [*found, f"rank {info.rank} finds no GPU"]
    return device, found


def _told_of(place: RankPosition, told: list[list[str] | None]) -> list[str]:
    """The problems of this rank's node. Raises UnmeasuredError if only other nodes have some."""
    mine = told[place.node * place.ranks_per_node :][: place.ranks_per_node]
    problems = [text for said in mine for text in said or []]
    if None in mine:
        problems.append(f"{mine.count(None)} of its {len(mine)} ranks did not start")
    others = [str(rank) for rank, said in enumerate(told) if said != []]
    if others and not problems:
        raise UnmeasuredError(f"not measured: the nodes of ranks {', '.join(others)} have problems")
    return problems


@contextmanager
def _meeting(place: RankPosition) -> Iterator[TCPStore]:
    """Opens the store that all ranks share. Rank 0 runs its server and so leaves last."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeper = place.rank == 0
    try:
        store = TCPStore(
            address, port, is_master=keeper, timeout=place.patience, wait_for_workers=False
        )
        store.set(f"came/{place.rank}", "")
    except RuntimeError as error:
        raise UnmetError(f"the ranks did not meet at {address}:{port}: {_said(error)}") from error
    try:
        yield store
    finally:
        if keeper:
            _wait_for_the_others(store, place.world_size)
        else:
            with suppress(RuntimeError):  # rank 0 is gone
                store.add("left", 1)


def _wait_for_the_others(store: TCPStore, world_size: int) -> None:
    came = sum(store.check([f"came/{rank}"]) for rank in range(1, world_size))
    deadline = time.monotonic() + LEAVE_SECONDS
    while store.add("left", 0) < came and time.monotonic() < deadline:
        time.sleep(0.05)


def _exchange(store: TCPStore, place: RankPosition, found: list[str]) -> list[list[str] | None]:
    """The problems that each rank has found; None for a rank that has not answered."""
    keys = [f"found/{rank}" for rank in range(place.world_size)]
    try:
        store.set(keys[place.rank], json.dumps(found))
        with suppress(dist.DistStoreError):  # some ranks do not answer
            store.wait(keys, place.patience)
        return [json.loads(store.get(key)) if store.check([key]) else None for key in keys]
    except RuntimeError as error:
        raise UnmetError(f"the ranks lost each other: {_said(error)}") from error


def _slowness(store: Store, place: RankPosition, least_gb_per_second: float) -> list[str]:
    speeds, failures = _measure([[node] for node in range(place.num_nodes)], store, place)
    if failures:
        return [f"all-reduce within the node fails: {failures[0]}"]
    problems = _too_slow("within the node", speeds, least_gb_per_second)
    speeds, failures = _measure(ring(place.num_nodes), store, place)
    if failures and not speeds:
        text = f"all-reduce with every neighbour fails: {failures[0]}"
        if place.num_nodes == 2 and not problems:
            raise UnmeasuredError(text)  # either of the two may be at fault
        problems.append(text)
    return problems + _too_slow("with its neighbours", speeds, least_gb_per_second)


def _too_slow(where: str, speeds: list[float], least: float) -> list[str]:
    if not speeds or max(speeds) >= least:
        return []
    return [
        f"all-reduce {where} runs at {max(speeds):.2f} GB/s, below the {least:g} GB/s asked for"
    ]


def ring(num_nodes: int) -> list[list[int]]:
    """The pairs of neighbours in a ring, in an order that measures many at the same time."""
    pairs = [[node, (node + 1) % num_nodes] for node in range(num_nodes)]
    if num_nodes == 1:
        return []
    if num_nodes == 2:
        return pairs[:1]
    return pairs[0::2] + pairs[1::2]


def _measure(
    groups: list[list[int]], store: Store, place: RankPosition
) -> tuple[list[float], list[str]]:
    """Measures the groups of nodes that this node is in.

    Returns the bus bandwidths in GB/s and, for the groups that failed, the reasons. Each group
    is a world of its own, so that no rank outside can disturb it.
    """
    speeds, failures = [], []
    for nodes in groups:
        first = [node * place.ranks_per_node for node in nodes]
        ranks = [rank + i for rank in first for i in range(place.ranks_per_node)]
        if place.node not in nodes or len(ranks) == 1:
            continue
        try:
            dist.init_process_group(
                "nccl" if place.device.type == "cuda" else "gloo",
                store=PrefixStore(f"nodes {nodes}", store),
                rank=ranks.index(place.rank),
                world_size=len(ranks),
                timeout=place.patience,
            )
            speeds.append(_all_reduce_speed(len(ranks), place.device))
        except RuntimeError as error:
            failures.append(_said(error))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return speeds, failures


def _all_reduce_speed(size: int, device: torch.device) -> float:
    tensor = torch.ones(MEGABYTES[device.type] * 2**20 // 4, device=device)
    dist.all_reduce(tensor)  # connects
    _finish(device)
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(tensor)
    _finish(device)
    seconds = (time.perf_counter() - started) / REPEATS
    bytes_moved = tensor.numel() * 4 * 2 * (size - 1) / size
    return bytes_moved / seconds / 1e9


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _said(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
