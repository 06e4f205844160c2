"""How long a micro-batch takes at least: kernels, bytes and FLOPs counted on the meta device.

The network runs forward and backward without values. Matrix products and attention count by their
FLOPs, everything else by the bytes that it reads and writes: each operation for itself, or, where
`train.compile` compiles, each piece of `esolm.model.compiling` as one kernel forward and one
backward, with one more that reads all of it again for the gradients of vectors. The figures of a
GPU then say how long each takes, one after the other. No GPU is needed, and none was used: it is
a bound, not a measurement.

    python -m benchmarks.roofline --size 170m 1.3b 7b
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from esolm.model import compiling, layers
from esolm.model.attention import AttentionMask
from esolm.model.columns import note_first_row
from esolm.model.config import ModelConfig
from esolm.model.flops import RowWork, layer_flops, visible_pairs
from esolm.model.inputs import NetworkInput
from esolm.model.kernels import Kernels, use_kernels
from esolm.model.loss import weighted_loss
from esolm.model.network import Network
from esolm.model.objectives import EsoLM
from esolm.model.recompute import set_recompute
from esolm.pipeline.parallel.single import single_process
from esolm.pipeline.run.hardware import PEAK_BF16_FLOPS

# What an H100 sustains, of its data sheet's 989e12 and 3.35e12: large matrix products, attention,
# and streaming through memory.
GEMM_FLOPS, ATTENTION_FLOPS, MEMORY_BYTES = 650e12, 400e12, 3e12
PEAK = PEAK_BF16_FLOPS["H100"]
MODERN: dict[str, Any] = {
    "norm": "rmsnorm", "activation": "swiglu", "mlp_bias": False, "output_bias": False,
    "adaln": False,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network and its micro-batch."""

    model: ModelConfig
    rows: int
    seq_len: int
    recompute: str = "none"


def _case(
    shape: tuple[int, int, int, int], vocab: int, rows: int, seq_len: int, recompute: str,
    **more: Any,
) -> Case:  # fmt: skip
    hidden, depth, heads, width = shape
    model = ModelConfig(
        vocab_size=vocab, mask_id=vocab - 1, hidden_size=hidden, num_layers=depth, num_heads=heads,
        ffn_hidden_size=width, **more,
    )  # fmt: skip
    return Case(model, rows, seq_len, recompute)


CASES = {
    "tiny": _case((64, 2, 4, 128), 96, 2, 32, "none", dropout=0.1),
    "170m": _case((768, 12, 12, 3072), 50258, 8, 1024, "none", dropout=0.1),
    "1.3b": _case((2048, 24, 16, 5504), 50304, 4, 2048, "none", **MODERN),
    "7b": _case((4096, 32, 32, 11008), 128256, 1, 4096, "selective", **MODERN),
}


@dataclass
class Count:
    """What a pass takes."""

    kernels: Counter[str] = field(default_factory=Counter)
    gemm_flops: float = 0.0
    attention_flops: float = 0.0
    elementwise_bytes: float = 0.0

    @property
    def seconds(self) -> float:
        gemm, attention = self.gemm_flops / GEMM_FLOPS, self.attention_flops / ATTENTION_FLOPS
        return gemm + attention + self.elementwise_bytes / MEMORY_BYTES


def size_of(tensors: Any) -> int:
    """The bytes of different memory among tensors."""
    held = {t.untyped_storage()._cdata: t for t in tree_leaves(tensors) if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in held.values())


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every operation, but for those within what counts itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.phase, self._paused = Count(), "forward", False

    @contextmanager
    def one_kernel(self) -> Iterator[None]:
        self.count.kernels[self.phase] += 1
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if self._paused or function.is_view or name in WITHOUT_KERNEL:
            return result
        self.count.kernels[self.phase] += 1
        if function.overloadpacket in flop_registry:
            flops = flop_registry[function.overloadpacket](*args, **kwargs, out_val=result)
            self.count.gemm_flops += flops
        elif name in LOOK_UPS:
            self.count.elementwise_bytes += 2 * size_of(result)
        elif name in PUT:
            self.count.elementwise_bytes += 2 * size_of(args[2])
        elif name in MADE:
            self.count.elementwise_bytes += size_of(result)
        else:
            self.count.elementwise_bytes += size_of((args, kwargs)) + size_of(result)
        return result


WITHOUT_KERNEL = {"detach", "empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view"}
LOOK_UPS = {"index", "embedding", "index_select", "gather"}
PUT, MADE = {"index_put_", "index_put"}, {"new_ones", "new_zeros", "zeros_like", "ones_like"}


class _Piece(torch.autograd.Function):
    """A function as one kernel forward and one backward, which computes again what it needs."""

    @staticmethod
    def forward(ctx: Any, counting: Counting, function: Callable[..., Any], *args: Any) -> Tensor:
        ctx.counting, ctx.function, ctx.args = counting, function, args
        with counting.one_kernel():
            result: Tensor = function(*args)
        counting.count.elementwise_bytes += size_of(args) + size_of(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        args = [a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
                for a in ctx.args]  # fmt: skip
        wanted = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        with ctx.counting.one_kernel(), torch.enable_grad():
            found = torch.autograd.grad(ctx.function(*args), wanted, gradient)
        memory = gradient.untyped_storage()._cdata
        if any(a.ndim == 1 for a in wanted):  # sums over all tokens, which read everything again
            ctx.counting.count.kernels[ctx.counting.phase] += 1
            ctx.counting.count.elementwise_bytes += size_of((ctx.args, gradient))
        new = [each for each in found if each.untyped_storage()._cdata != memory]
        ctx.counting.count.elementwise_bytes += size_of((ctx.args, gradient)) + size_of(new)
        gradients = iter(found)
        is_wanted = [isinstance(a, Tensor) and a.requires_grad for a in args]
        return None, None, *(next(gradients) if each else None for each in is_wanted)


class _Attention(torch.autograd.Function):
    """Attention that reads and writes nothing in between, by the pairs that the pattern shows."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, counting: Counting, pairs: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.counting, ctx.flops = counting, 4 * pairs * q.shape[0] * q.shape[1] * q.shape[3]
        with counting.one_kernel():
            counting.count.attention_flops += ctx.flops
            return torch.empty_like(q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        with ctx.counting.one_kernel():
            ctx.counting.count.attention_flops += 2.5 * ctx.flops
            return *(torch.empty_like(each) for each in ctx.saved_tensors), None, None


def count(case: Case, work: RowWork, compiled: bool) -> Count:
    """What a micro-batch of rows of one kind takes, forward and backward."""
    counting, skipped = Counting(), int(work.skipped)
    fed, outputs = int(work.fed), int(work.outputs)
    all_pairs, output_pairs = visible_pairs(work)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
        pairs = all_pairs if mask.num_queries == fed else output_pairs
        out: Tensor = _Attention.apply(q, k, v, counting, pairs)  # type: ignore[no-untyped-call]
        return out

    def one_kernel(function: Callable[..., Any], _: str) -> Callable[..., Any]:
        return lambda *args: _Piece.apply(counting, function, *args)  # type: ignore[no-untyped-call]

    def masks(rows: Tensor, seq_len: int, last: bool, positions: Tensor) -> AttentionMask:
        return AttentionMask(work.pattern, outputs if last else seq_len)

    with torch.device("meta"):
        network = Network(case.model, single_process()).bfloat16().train()
        for block in network.blocks:
            block.masks = masks  # type: ignore[assignment]
        set_recompute(network, case.recompute)
        tokens = torch.zeros(case.rows, fed, dtype=torch.int64)
        none, labels = tokens[:, 0], tokens[:, 0].new_zeros(int(work.scored * case.rows))
        inputs = NetworkInput(tokens, tokens, work.pattern, none, none, work.block_size, skipped)
        rows, weights = inputs.rows(), torch.zeros(len(labels))
    note_first_row(rows, [work.pattern.index, work.block_size, 0, 0, skipped, 0])
    use_kernels(Kernels(compiled="counted" if compiled else ""))
    patches = (
        patch.object(layers, "attend", attend),
        patch.object(compiling, "_compiled", one_kernel),
    )
    with patches[0], patches[1], counting:
        loss = weighted_loss(
            network.head, network((tokens, tokens, rows)), (labels, labels, weights)
        )
        counting.phase = "backward"
        loss.backward()  # type: ignore[no-untyped-call]
    return counting.count


def report(name: str, compiled: bool) -> float:
    """Prints what each kind of row takes; returns the share of the peak of a mean micro-batch."""
    case = CASES[name]
    objective = EsoLM(case.model.mask_id, alpha_0=0.5, kappa=0.5)
    flops = seconds = 0.0
    for work in objective.work(case.seq_len):
        found = count(case, work, compiled)
        useful = case.rows * sum(layer_flops(case.model, work))
        flops, seconds = flops + work.share * useful, seconds + work.share * found.seconds
        kernels = " + ".join(f"{found.kernels[phase]:,}" for phase in ("forward", "backward"))
        print(
            f"{name:5} {'compiled' if compiled else 'eager':8} {work.pattern.value:11} {kernels} "
            f"kernels, matrix products {1e3 * found.gemm_flops / GEMM_FLOPS:.1f} ms, attention "
            f"{1e3 * found.attention_flops / ATTENTION_FLOPS:.1f} ms, all else "
            f"{found.elementwise_bytes / 1e9:.2f} GB "
            f"{1e3 * found.elementwise_bytes / MEMORY_BYTES:.1f} ms"
        )
    return flops / seconds / PEAK


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=CASES, default=["170m"])
    args = parser.parse_args()
    for name in args.size:
        shares = [report(name, compiled) for compiled in (False, True)]
        print(f"{name}: at most {shares[0]:.0%} of an H100's peak eager, {shares[1]:.0%} compiled")


if __name__ == "__main__":
    main()
