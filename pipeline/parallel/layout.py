"""A parallel layout: how many ranks share the network, and how the rest share the batch."""

from dataclasses import dataclass

REDUCE_BUCKET = 50_000_000
"""Elements of the fp32 buffer in which gradients are collected before they are reduced."""


@dataclass(frozen=True)
class Layout:
    """tp x cp x pp x dp ranks with ZeRO stage `zero` over those that hold the same weights.

    Ranks are numbered with tp fastest, then cp, dp and pp: the order of megatron-core and, where
    cp x dp are one, of DeepSpeed's PipeModelDataParallelTopology alike.
    """

    tp: int
    pp: int
    dp: int
    zero: int
    sequence: bool = False
    """Sequence parallelism among the tensor-parallel ranks."""
    cp: int = 1
    """Context-parallel ranks, which share the tokens of every row of a replica."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.copies

    @property
    def copies(self) -> int:
        """The ranks that hold the same weights; see `esolm.pipeline.parallel.copies`."""
        return self.cp * self.dp

    def needs_deepspeed(self, offload: bool) -> bool:
        """Whether there is something to share out, or an optimizer to keep in host memory."""
        return self.world_size > 1 or offload

    def scatters(self, precision: str, offload: bool) -> bool:
        """Whether several ranks' gradients are scattered by us; DeepSpeed reduces all others."""
        return self.zero == 1 and precision == "bf16" and not offload

    def __str__(self) -> str:
        tensor = f"TP{self.tp}{'+SP' if self.sequence else ''}"
        context = f" x CP{self.cp}" if self.cp > 1 else ""
        return f"{tensor}{context} x PP{self.pp} x DP{self.dp}, ZeRO-{self.zero}"


def fit_layout(
    tp: int, pp: int, zero: int, sequence: bool, world_size: int, cp: int = 1
) -> tuple[Layout | None, list[str]]:
    """The layout of `world_size` ranks, or every reason why there is none.

    A degree below 1 leaves none without a reason: the check of its setting names it.
    """
    problems = []
    if sequence and tp == 1:
        problems.append("parallel.sequence=true splits tokens among tensor-parallel ranks; tp is 1")
    if pp > 1 and zero > 1:
        problems.append(
            f"parallel.zero={zero} does not go with parallel.pp={pp}: gradients of a stage "
            "are summed over micro-batches before they are reduced; use parallel.zero=1"
        )
    replica = tp * cp * pp
    if min(tp, cp, pp) >= 1 and world_size % replica:
        context = f" x parallel.cp {cp}" if cp > 1 else ""
        problems.append(
            f"{world_size} ranks do not divide by parallel.tp {tp}{context} x parallel.pp {pp} = "
            f"{replica}"
        )
    if problems or min(tp, cp, pp) < 1:
        return None, problems
    return Layout(tp, pp, world_size // replica, zero, sequence, cp), []
