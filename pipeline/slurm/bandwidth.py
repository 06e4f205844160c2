"""All-reduce bandwidth within a node and between neighbours, to name the node that is slow."""

import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.parallel.bootstrap import device_of, process_info

MEGABYTES = {"cuda": 256, "cpu": 16}
REPEATS = 5
TIMEOUT = timedelta(minutes=4)


def bandwidth_problems(least_gb_per_second: float) -> list[str]:
    """What is too slow about this rank's node; collective over all ranks of the step.

    Each node by itself first, then each with both of its neighbours in a ring: a node is to blame
    if it is slow alone or with every neighbour. Of two slow nodes both are.
    """
    info = process_info()
    device = device_of(info)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=info.rank, world_size=info.world_size, timeout=TIMEOUT)
    try:
        nodes = _nodes()
        mine = nodes.index(os.environ["SLURMD_NODENAME"])
        ranks_per_node = info.world_size // len(nodes)
        alone = _measure([[node] for node in range(len(nodes))], mine, ranks_per_node, device)
        problems = []
        if alone and alone[0] < least_gb_per_second:
            problems.append(f"all-reduce within the node runs at {alone[0]:.2f} GB/s")
        speeds = _measure(ring(len(nodes)), mine, ranks_per_node, device)
        if speeds and max(speeds) < least_gb_per_second:
            problems.append(f"all-reduce with its neighbours runs at {max(speeds):.2f} GB/s")
        return [f"{text}; {least_gb_per_second:g} are wanted" for text in problems]
    finally:
        dist.destroy_process_group()


def _nodes() -> list[str]:
    """Names of the nodes in the order of their ranks."""
    gathered: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(gathered, os.environ["SLURMD_NODENAME"])
    return list(dict.fromkeys(gathered))


def ring(num_nodes: int) -> list[list[int]]:
    """Neighbours in a ring, those that can be measured at the same time next to each other."""
    pairs = [[node, (node + 1) % num_nodes] for node in range(num_nodes)]
    if num_nodes == 1:
        return []
    if num_nodes == 2:
        return pairs[:1]
    return pairs[0::2] + pairs[1::2]


def _measure(
    groups: list[list[int]], mine: int, ranks_per_node: int, device: torch.device
) -> list[float]:
    """Bus bandwidth in GB/s of each group of nodes that this node is in."""
    speeds = []
    for nodes in groups:
        ranks = [node * ranks_per_node + i for node in nodes for i in range(ranks_per_node)]
        group = dist.new_group(ranks)
        if mine in nodes and len(ranks) > 1:
            speeds.append(_all_reduce_speed(group, len(ranks), device))
    return speeds


def _all_reduce_speed(group: dist.ProcessGroup, size: int, device: torch.device) -> float:
    tensor = torch.ones(MEGABYTES[device.type] * 2**20 // 4, device=device)
    dist.all_reduce(tensor, group=group)  # connects
    _finish(device)
    started = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(tensor, group=group)
    _finish(device)
    seconds = (time.perf_counter() - started) / REPEATS
    bytes_moved = tensor.numel() * 4 * 2 * (size - 1) / size
    return bytes_moved / seconds / 1e9


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
