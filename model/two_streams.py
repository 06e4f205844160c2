"""Attention of noised tokens that see themselves and the clean tokens before them.

A dense mask of two streams of L tokens scores 4 L^2 pairs, of which L^2 are visible. Here the
kernel for causal attention runs over the pairs with clean tokens, and the score of each noised
token with itself is added: softmaxes over parts of the keys merge by their log-sum-exp (Dao et al.,
arXiv 2205.14135, section 3.1).

Z noised tokens z_i stand for the last Z of the L clean tokens x_j, so i runs from skipped = L - Z:
all of them see the x_j below that, and what is left is causal. H heads, K the dimension of a head.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class KernelCall(NamedTuple):
    """One call of the kernel: which noised tokens as queries, which clean tokens as keys."""

    queries: slice
    keys: slice
    is_causal: bool


def attend_noised(q: Tensor, noised: tuple[Tensor, Tensor], clean: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the attention of the queries q of noised tokens [B, H, Z, K], shaped like q.

    noised: their own keys and values [B, H, Z, K]. clean: those of the clean tokens [B, H, L, K].
    Needs tensors on the CPU.
    """
    out: Tensor = _Noised.apply(q, *noised, *clean)  # type: ignore[no-untyped-call]
    return out


def _passes(noised: int, length: int) -> list[KernelCall]:
    skipped = length - noised
    everything, later = slice(0, noised), slice(1, noised)
    passes = [
        KernelCall(everything, slice(0, skipped), False),
        # z_i sees x_j for j < i, so the second one sees the first key here, and so on.
        KernelCall(later, slice(skipped, length - 1), True),
    ]
    return [each for each in passes if each.keys.stop > each.keys.start]


class _Noised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, own_k: Tensor, own_v: Tensor, clean_k: Tensor, clean_v: Tensor
    ) -> Tensor:
        passes = _passes(q.shape[2], clean_k.shape[2])
        own_score = _own_scores(q, own_k)
        parts = [
            _forward(
                q[:, :, p.queries], clean_k[:, :, p.keys], clean_v[:, :, p.keys], 0.0, p.is_causal
            )
            for p in passes
        ]
        total = own_score.clone()
        for p, (_, part_sum) in zip(passes, parts, strict=True):
            seen = total[:, :, p.queries]
            torch.logaddexp(seen, part_sum, out=seen)
        out = _weight(own_score, total, q.dtype) * own_v
        for p, (part, part_sum) in zip(passes, parts, strict=True):
            weight = _weight(part_sum, total[:, :, p.queries], q.dtype)
            out[:, :, p.queries].addcmul_(part, weight)
        ctx.save_for_backward(q, own_k, own_v, clean_k, clean_v, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, own_k, own_v, clean_k, clean_v, out, total = ctx.saved_tensors
        own_weight = _weight(_own_scores(q, own_k), total, q.dtype)
        of_own_v = gradient * own_weight
        # The derivative of a softmax: its weight times how far the value is from the mean.
        of_score = ((own_v - out) * of_own_v).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])
        of_q, of_own_k = of_score * own_k, of_score * q
        of_k, of_v = torch.zeros_like(clean_k), torch.zeros_like(clean_v)
        for p in _passes(q.shape[2], clean_k.shape[2]):
            # With the output and the sums over all keys the kernel makes this part of the gradient.
            kept = (clean_k[:, :, p.keys], clean_v[:, :, p.keys])
            merged = (out[:, :, p.queries], total[:, :, p.queries])
            of_part_q, of_part_k, of_part_v = _backward(
                gradient[:, :, p.queries], q[:, :, p.queries], *kept, *merged, 0.0, p.is_causal
            )
            of_q[:, :, p.queries] += of_part_q
            of_k[:, :, p.keys], of_v[:, :, p.keys] = of_part_k, of_part_v
        return of_q, of_own_k, of_own_v, of_k, of_v


def _own_scores(q: Tensor, own_k: Tensor) -> Tensor:
    """Returns the score of each token with itself, [B, H, Z], in the type of the kernel's sums."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return (q * own_k).sum(-1, dtype=wide) / math.sqrt(q.shape[-1])


def _weight(part: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the share of the softmax, [B, H, Z, 1], that keys with this log-sum have."""
    return (part - total).exp().to(dtype)[..., None]
