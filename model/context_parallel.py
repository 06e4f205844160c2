"""Context parallelism: outside of attention each rank of a group holds part of every row's tokens.

Of each stream of a row, rank r of R holds the tokens r, R + r, 2R + r and so on: first its noised
ones, then its clean ones, which are the same where as many as R times a number lack in front. So
the tokens with loss, which in many rows stand at the end, are shared out as well. For attention the
ranks exchange heads for tokens, so that each has a part of the heads of all tokens in their order,
and every pattern is what it is without (DeepSpeed-Ulysses, arXiv 2309.14509). Positions and what
else tells of rows stay whole on every rank.

Shape letters: T local tokens of a row, S all of them, H the heads of this tensor-parallel rank, h
of them those that this rank attends with, N the elements that go to one rank.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor
from torch.autograd.function import once_differentiable

from esolm.model.attention import AttentionPattern, stream_lengths
from esolm.model.columns import Column, first_row

Tensors = tuple[Tensor, ...]
Direction = Callable[[Tensors], Tensors]
# The tokens of each stream of a row over all ranks; see `esolm.model.attention.stream_lengths`.
Streams = tuple[int, ...]
# Training has few lengths of rows.
MOST_PLACES = 32


class ContextSplit:
    """Moves between the tokens that this rank holds and those of the whole row.

    With one rank it changes nothing, and asks for no process group.
    """

    def __init__(self, parallel: ModelParallelConfig) -> None:
        self.ranks: int = parallel.context_parallel_size

    def share(self, tokens: int) -> int:
        """Returns how many of the tokens of whole streams this rank holds."""
        return tokens // self.ranks

    def cut_tokens(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Returns what this rank holds of the tokens of a micro-batch: [B, S] -> [B, T]."""
        if self.ranks == 1:
            return tokens
        first = first_row(rows)
        pattern = AttentionPattern.at(first[Column.PATTERN])
        return self.cut(tokens, stream_lengths(pattern, tokens.shape[1], first[Column.SKIPPED]))

    def cut(self, whole: Tensor, streams: Streams) -> Tensor:
        """Returns what this rank holds of something that each token has: [B, S] -> [B, T]."""
        places = self.places(whole.shape[1], streams, whole.device)
        return whole if places is None else whole.index_select(1, places)

    def places(self, size: int, streams: Streams, device: torch.device) -> Tensor | None:
        """Returns where this rank's tokens stand among the first `size` of a row, int64 [T].

        None with one rank, which has them all.
        """
        if self.ranks == 1:
            return None
        rank = parallel_state.get_context_parallel_rank()
        return _places(_leading(streams, size), self.ranks, rank, device)

    def to_heads(self, tensors: Tensors, streams: Streams) -> Tensors:
        """Returns a part of the heads for all tokens: each [B, T, H, K] -> [B, S, h, K].

        A tensor has the tokens of all streams, or of the first. One with fewer heads than there are
        ranks gives each head to several of them.
        """
        if self.ranks == 1:
            return tensors
        shared = tuple(self._for_each_rank(tensor) for tensor in tensors)
        exchange = self._exchange([self.ranks * x.shape[1] for x in shared], streams)
        found: Tensors = _Exchanged.apply(  # type: ignore[no-untyped-call]
            exchange.to_heads, exchange.to_tokens, *shared
        )
        return found

    def to_tokens(self, heads_BShK: Tensor, streams: Streams) -> Tensor:
        """Undoes `to_heads` of one tensor: [B, S, h, K] -> [B, T, H, K]."""
        if self.ranks == 1:
            return heads_BShK
        exchange = self._exchange([heads_BShK.shape[1]], streams)
        tokens: Tensors = _Exchanged.apply(  # type: ignore[no-untyped-call]
            exchange.to_tokens, exchange.to_heads, heads_BShK
        )
        return tokens[0]

    def _for_each_rank(self, tensor: Tensor) -> Tensor:
        heads = tensor.shape[2]
        return tensor.repeat_interleave(self.ranks // heads, 2) if heads < self.ranks else tensor

    def _exchange(self, sizes: list[int], streams: Streams) -> "_Exchange":
        """sizes: how many tokens of a row each tensor is of, over all ranks."""
        group = parallel_state.get_context_parallel_group()
        return _Exchange(group, self.ranks, tuple(_leading(streams, size) for size in sizes))


def _leading(streams: Streams, tokens: int) -> Streams:
    """Returns the streams that so many tokens in front are: all, or the first."""
    return streams if sum(streams) == tokens else streams[:1]


@lru_cache(MOST_PLACES)
def _places(streams: Streams, ranks: int, rank: int, device: torch.device) -> Tensor:
    parts, start = [], 0
    for length in streams:
        parts.append(torch.arange(start + rank, start + length, ranks, device=device))
        start += length
    return torch.cat(parts)


class _Exchange(NamedTuple):
    """What goes between the ranks at a time: the streams of each of several tensors."""

    group: dist.ProcessGroup
    ranks: int
    streams: tuple[Streams, ...]

    def to_heads(self, tensors: Tensors) -> Tensors:
        shapes = [(*x.shape[:2], x.shape[2] // self.ranks, x.shape[3]) for x in tensors]
        out_RN = tensors[0].new_empty(self.ranks, sum(map(math.prod, shapes)))
        for part, tensor in zip(_parts(out_RN, shapes), tensors, strict=True):
            batch, share, heads, size = tensor.shape
            by_rank = tensor.view(batch, share, self.ranks, heads // self.ranks, size)
            part.copy_(by_rank.movedim(2, 0))
        came = _parts(self._all_to_all(out_RN), shapes)
        return tuple(self._joined(*each) for each in zip(came, self.streams, strict=True))

    def to_tokens(self, tensors: Tensors) -> Tensors:
        shapes = [(len(x), x.shape[1] // self.ranks, *x.shape[2:]) for x in tensors]
        out_RN = tensors[0].new_empty(self.ranks, sum(map(math.prod, shapes)))
        parts = _parts(out_RN, shapes)
        for part, tensor, streams in zip(parts, tensors, self.streams, strict=True):
            for of_ranks, of_row in self._by_stream(part, tensor, streams):
                of_ranks.copy_(of_row)
        came = _parts(self._all_to_all(out_RN), shapes)
        return tuple(part.movedim(0, 2).flatten(2, 3) for part in came)

    def _all_to_all(self, out_RN: Tensor) -> Tensor:
        """Sends row r to rank r, and returns what came of each."""
        in_RN = torch.empty_like(out_RN)
        dist.all_to_all_single(in_RN, out_RN, group=self.group)
        return in_RN

    def _joined(self, came: Tensor, streams: Streams) -> Tensor:
        """Puts the ranks' parts into the order of the row: [R, B, T, h, K] -> [B, S, h, K]."""
        _, batch, share, heads, size = came.shape
        whole = came.new_empty(batch, self.ranks * share, heads, size)
        for of_ranks, of_row in self._by_stream(came, whole, streams):
            of_row.copy_(of_ranks)
        return whole

    def _by_stream(
        self, of_ranks: Tensor, of_row: Tensor, streams: Streams
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields views of each stream, both [R, B, t, h, K], of the ranks' parts and the row."""
        shares = torch.split(of_ranks, [length // self.ranks for length in streams], dim=2)
        wholes = torch.split(of_row, list(streams), dim=1)
        for share, whole in zip(shares, wholes, strict=True):
            by_rank = whole.view(len(whole), -1, self.ranks, *whole.shape[2:])
            yield share, by_rank.movedim(2, 0)


def _parts(rows_RN: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Returns views [R, *shape] of what lies one after the other in each of [R, N]."""
    parts = torch.split(rows_RN, [math.prod(shape) for shape in shapes], dim=1)
    return [part.view(len(rows_RN), *shape) for part, shape in zip(parts, shapes, strict=True)]


class _Exchanged(torch.autograd.Function):
    """One direction of an exchange; gradients take the other."""

    @staticmethod
    def forward(ctx: Any, there: Direction, back: Direction, *tensors: Tensor) -> Tensors:
        ctx.back = back
        return there(tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back: Direction = ctx.back
        return None, None, *back(gradients)
