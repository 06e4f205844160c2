"""Says where a pipeline is cut into stages."""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise


def stage_bounds(layer_costs: Sequence[float], num_stages: int) -> list[tuple[int, int]]:
    """Returns the pipeline layers [first, end) of every stage, as the training engine cuts them.

    layer_costs: the costs of the embedding, every block and the head; see
    `esolm.model.flops.layer_costs`.
    """
    largest = max(layer_costs)
    weights = tuple(max(1, round(1000 * cost / largest)) for cost in layer_costs)
    bounds = _partition(weights, num_stages)
    return list(pairwise(bounds))


@lru_cache(maxsize=256)
def _partition(weights: tuple[int, ...], num_parts: int) -> tuple[int, ...]:
    """Returns the bounds for which the heaviest and the lightest part differ least.

    This is the dynamic programme of `deepspeed.runtime.utils.partition_balanced`, ties included,
    which the engine calls; importing DeepSpeed would take longer than the whole plan.
    """
    count = len(weights)
    if count <= num_parts:
        return (*range(count + 1), *[count] * (num_parts - count))
    sums = [sum(weights[:end]) for end in range(count + 1)]
    # best[end, parts] is (difference, heaviest, lightest, start of the last part) for the layers
    # [0, end) in so many parts.
    best = {(0, 0): (0.0, 0.0, math.inf, 0)}
    for end in range(1, count + 1):
        for parts in range(1, min(end, num_parts) + 1):
            options = []
            for start in range(end):
                _, heaviest, lightest, _ = best.get(
                    (start, parts - 1), (math.inf, math.inf, math.inf, 0)
                )
                weight = sums[end] - sums[start]
                heaviest, lightest = max(heaviest, weight), min(lightest, weight)
                options.append((heaviest - lightest, -start, heaviest, lightest))
            difference, negative, heaviest, lightest = min(options)
            best[end, parts] = (difference, heaviest, lightest, -negative)
    bounds = [count]
    for parts in range(num_parts, 0, -1):
        bounds.append(best[bounds[-1], parts][3])
    return tuple(reversed(bounds))
