"""A parallel layout: how many ranks share the network, and how the rest share the batch."""

from dataclasses import dataclass

REDUCE_BUCKET = 50_000_000
"""Elements of the fp32 buffer in which gradients are collected before they are reduced."""


@dataclass(frozen=True)
class Layout:
    """tp x pp x dp ranks with ZeRO stage `zero` over the data-parallel ones.

    Ranks are numbered with tp fastest, then dp, then pp: the order of megatron-core and of
    DeepSpeed's PipeModelDataParallelTopology alike.
    """

    tp: int
    pp: int
    dp: int
    zero: int
    sequence: bool = False
    """Sequence parallelism among the tensor-parallel ranks."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def scatters(self, precision: str, offload: bool) -> bool:
        """Whether gradients are reduce-scattered by us; DeepSpeed reduces all others itself."""
        return self.zero == 1 and precision == "bf16" and not offload

    def __str__(self) -> str:
        tensor = f"TP{self.tp}{'+SP' if self.sequence else ''}"
        return f"{tensor} x PP{self.pp} x DP{self.dp}, ZeRO-{self.zero}"


def fit_layout(
    tp: int, pp: int, zero: int, sequence: bool, world_size: int
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
    if tp >= 1 and pp >= 1 and world_size % (tp * pp):
        problems.append(
            f"{world_size} ranks do not divide by parallel.tp {tp} x parallel.pp {pp} = {tp * pp}"
        )
    if problems or min(tp, pp) < 1:
        return None, problems
    return Layout(tp, pp, world_size // (tp * pp), zero, sequence), []
