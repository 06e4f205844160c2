"""Exchanges heads for tokens between running ranks, for tests/dist/test_exchange.py."""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from torch import Tensor

from esolm.model.context_parallel import ContextSplit
from esolm.model.inputs import Targets
from esolm.pipeline.parallel.bootstrap import initialize_groups
from esolm.pipeline.parallel.layout import Layout
from tests.dist import workers

HEADS, SIZE, BATCH = 4, 3, 2


def exchanges(cases: list[dict[str, Any]]) -> Any:
    """Per case: what went wrong on any rank, by name."""
    answers = []
    for case in cases:
        parallel_state.destroy_model_parallel()
        initialize_groups(Layout(**case["layout"]))
        found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, _wrong(case["layout"]["cp"], tuple(case["streams"])))
        answers.append(sorted({name for names in found for name in names}))
    return answers


def _wrong(ranks: int, streams: tuple[int, ...]) -> list[str]:
    """q has the tokens of the first stream, k and v those of all; v has one head."""
    split = ContextSplit(ModelParallelConfig(context_parallel_size=ranks))
    rank, sizes = parallel_state.get_context_parallel_rank(), (streams[0], sum(streams))
    wholes = [_tensor(1, sizes[0], HEADS), _tensor(2, sizes[1], HEADS), _tensor(3, sizes[1], 1)]
    held = [_held(whole, streams, rank, ranks).requires_grad_() for whole in wholes]
    mine = slice(rank * HEADS // ranks, (rank + 1) * HEADS // ranks)
    q, k, v = split.to_heads(tuple(held), streams)
    back = split.to_tokens(q, streams)
    wrong = {
        "q": not torch.equal(q, wholes[0][:, :, mine]),
        "k": not torch.equal(k, wholes[1][:, :, mine]),
        "v": not torch.equal(v, wholes[2]),
        "back": not torch.equal(back, held[0]),
    }
    # The loss over all ranks is the sum of factor * value over all heads and tokens.
    factors = [_tensor(4 + i, whole.shape[1], HEADS) for i, whole in enumerate(wholes)]
    one_each = [factors[0][:, :, mine], factors[1][:, :, mine], factors[2][:, :, rank : rank + 1]]
    parts = [(x * factor).sum() for x, factor in zip((q, k, v), one_each, strict=True)]
    gradients = torch.autograd.grad(parts[0] + parts[1] + parts[2], held)
    expected = [*factors[:2], factors[2][:, :, :ranks].sum(2, keepdim=True)]
    for name, gradient, whole in zip("qkv", gradients, expected, strict=True):
        right = _held(whole, streams, rank, ranks)
        wrong[f"gradient of {name}"] = not torch.allclose(gradient, right)
    wrong |= _wrongly_cut(split, rank, streams)
    return [name for name, is_wrong in wrong.items() if is_wrong]


def _wrongly_cut(split: ContextSplit, rank: int, streams: tuple[int, ...]) -> dict[str, bool]:
    """Labels are those of the outputs that a rank holds; a clean token lies with its noised one."""
    labels = torch.arange(BATCH * streams[0]).view(BATCH, -1)
    part = Targets(labels, labels.float(), labels.numpy()).part(rank, split.ranks)
    places = split.places(sum(streams), streams, labels.device)
    assert places is not None
    noised, clean = places[places < streams[0]], places[places >= streams[0]] - streams[0]
    skipped = streams[-1] - streams[0]
    return {
        "labels": not torch.equal(part.labels, split.cut(labels, streams)),
        "weights": not torch.equal(part.weights, part.labels.float()),
        "z and x": len(streams) == 2
        and not set((noised + skipped).tolist()) <= set(clean.tolist()),
    }


def _tensor(seed: int, tokens: int, heads: int) -> Tensor:
    return torch.randn(BATCH, tokens, heads, SIZE, generator=torch.Generator().manual_seed(seed))


def _held(whole: Tensor, streams: tuple[int, ...], rank: int, ranks: int) -> Tensor:
    """What a rank holds of [B, S, H, K], token by token."""
    places, start = [], 0
    for length in streams:
        places += [start + i for i in range(length) if i % ranks == rank]
        start += length
    return whole[:, [place for place in places if place < whole.shape[1]]].clone()


if __name__ == "__main__":
    workers.main(globals())
