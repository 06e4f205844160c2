"""What does not go with products in FP8, of a configuration and of a GPU."""

from esolm.model.config import FP8_MULTIPLE, FP8_RECIPES, ModelConfig
from esolm.model.objectives import Objective
from esolm.pipeline.run.sections import ParallelSection, TrainSection


def capability_problem(recipe: str, gpu: str, capability: tuple[int, int]) -> str:
    """Says that a GPU of a name and compute capability lacks products in FP8; "" if it has them."""
    needed = (8, 9) if recipe == "tensorwise" else (9, 0)
    if recipe == "none" or capability >= needed:
        return ""
    least, found = (".".join(map(str, version)) for version in (needed, capability))
    return f"it needs compute capability {least}, and {gpu} has {found}"


def refusal(recipe: str, problem: str) -> str:
    """Says what stands in the way of a recipe, and what to do."""
    return f"train.fp8={recipe}: {problem}. Set train.fp8=none to train in bf16"


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
    if model.hidden_size % tp or model.ffn_hidden_size % tp:
        return problems  # what does not divide is named already
    of_matrices, of_tokens = _share("tp", tp), _share("cp", cp)
    sizes = {
        f"model.hidden_size{of_matrices}": model.hidden_size // tp,
        f"model.ffn_hidden_size{of_matrices}": model.ffn_hidden_size // tp,
        "the width of the keys of a rank": max(model.kv_size // tp, model.head_dim),
    } | {
        f"the tokens of a micro-batch, train.micro_batch_size x {work.length}{of_tokens},": (
            train.micro_batch_size * work.length // cp
        )
        for work in objective.work(train.seq_len)
    }
    return problems + [
        f"train.fp8: {name} must divide by {FP8_MULTIPLE} and is {size}; change it, or set "
        "train.fp8=none"
        for name, size in sizes.items()
        if size % FP8_MULTIPLE
    ]


def _share(name: str, ranks: int) -> str:
    return f" / parallel.{name} {ranks}" if ranks > 1 else ""
