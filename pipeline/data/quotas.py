"""How samples are dealt to weighted sources: exactly, and as a pure function of their number.

Two sources share m samples as round(m * p) and the rest. More of them stand in a tree whose nodes
are shared out so, the lightest deepest (Huffman's). Whole numbers throughout: nothing drifts in a
long run. No source's count ever falls as m grows, however small its share, and none is ever more
than 1.5 samples from m * share: a node is off by half a sample and by at most 2/3 of what the node
above it is off.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm


@dataclass(frozen=True)
class _Node:
    """weight: of all sources below. source: a leaf's number; of other nodes see `parts`."""

    weight: int
    source: int = -1
    parts: "tuple[_Node, _Node] | None" = None


def shares_of(weights: Sequence[float]) -> list[Fraction]:
    """Returns the exact share of each weight, taken as the decimal number it is written as."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    return [weight / sum(exact) for weight in exact]


class Quotas:
    """How many of the first samples each source gives."""

    def __init__(self, weights: Sequence[float]) -> None:
        """weights: finite and above 0, in any unit."""
        shares = shares_of(weights)
        unit = lcm(*(share.denominator for share in shares))
        leaves = [_Node(int(share * unit), number) for number, share in enumerate(shares)]
        heap = [(leaf.weight, number, leaf) for number, leaf in enumerate(leaves)]
        heapq.heapify(heap)
        for number in range(len(leaves), 2 * len(leaves) - 1):
            light, heavy = heapq.heappop(heap)[2], heapq.heappop(heap)[2]
            weight = light.weight + heavy.weight
            heapq.heappush(heap, (weight, number, _Node(weight, parts=(heavy, light))))
        self._root = heap[0][2]
        self._num_sources = len(leaves)

    def counts(self, num_samples: int) -> list[int]:
        """Returns how many of the first num_samples samples are of each source."""
        counts = [0] * self._num_sources
        nodes = [(self._root, num_samples)]
        while nodes:
            node, total = nodes.pop()
            if node.parts is None:
                counts[node.source] = total
                continue
            heavy, light = node.parts
            of_heavy = (2 * total * heavy.weight + node.weight) // (2 * node.weight)
            nodes += [(heavy, of_heavy), (light, total - of_heavy)]
        return counts
