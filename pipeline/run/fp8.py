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
    tp, cp = max(1, parallel.tp), max(1, parallel.cp)
    part = f" / parallel.tp {tp}" if tp > 1 else ""
    share = f" / parallel.cp {cp}" if cp > 1 else ""
    sizes = {
        f"model.hidden_size{part}": model.hidden_size // tp,
        f"model.ffn_hidden_size{part}": model.ffn_hidden_size // tp,
        f"the width of all keys{part}": max(model.kv_size // tp, model.head_dim),
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
