"""What does not go with products in FP8."""

from esolm.model.config import FP8_MULTIPLE, FP8_RECIPES, ModelConfig
from esolm.model.objectives import Objective
from esolm.pipeline.run.sections import ParallelSection, TrainSection


def fp8_problems(
    train: TrainSection, parallel: ParallelSection, model: ModelConfig, objective: Objective
) -> list[str]:
    """Says why `train.fp8` cannot be had, one sentence each."""
    if train.fp8 not in FP8_RECIPES or model.problems():
        return []  # what is wrong is named already
    problems = []
    if train.precision != "bf16":
        problems.append(f"train.fp8 goes with train.precision=bf16, which is {train.precision}")
    if parallel.tp > 1:
        problems.append(
            f"train.fp8 is for matrices that are whole, and parallel.tp is {parallel.tp}: share "
            "the network by parallel.pp or parallel.zero=3, or set train.fp8=none"
        )
    cp = max(1, parallel.cp)
    share = f" / parallel.cp {cp}" if cp > 1 else ""
    sizes = {
        "model.hidden_size": model.hidden_size,
        "model.ffn_hidden_size": model.ffn_hidden_size,
        "the width of all keys": model.kv_heads * model.head_dim,
    } | {
        f"the tokens of a micro-batch, train.micro_batch_size x {work.length}{share},": (
            train.micro_batch_size * work.length // cp
        )
        for work in objective.work(train.seq_len)
    }
    return problems + [
        f"train.fp8: {name} must divide by {FP8_MULTIPLE} and is {size}"
        for name, size in sizes.items()
        if size % FP8_MULTIPLE
    ]
