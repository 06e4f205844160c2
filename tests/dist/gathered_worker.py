"""What a forward pass under ZeRO-3 keeps of weights that were gathered for it."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.dist import workers


def views_kept(cases: list[dict[str, Any]]) -> Any:
    """Per case: how many tensors a micro-batch keeps for its backward pass that are views of
    matrices of the blocks, whose memory they would hold, and how many weights it keeps themselves.

    Of the first engine of a process: DeepSpeed's replacements stay for those that follow.
    """
    answers = []
    for case in cases:
        with workers.engine_of(case) as (engine, source):
            named = [each for name, each in engine.parameters() if name.startswith("blocks.")]
            matrices = {id(each) for each in named if len(each.ds_shape) > 1}  # type: ignore
            batch = workers.batch_of(source, 0)[0]
            views, itself = 0, 0

            def count(tensor: Tensor, matrices: set[int] = matrices) -> Tensor:
                nonlocal views, itself
                base = tensor if tensor._base is None else tensor._base
                if id(base) in matrices:
                    views, itself = views + (base is not tensor), itself + (base is tensor)
                return tensor

            wrapped: nn.Module = engine.deepspeed  # type: ignore[attr-defined]
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                wrapped(batch.inputs, batch.targets, None)
            answers.append([views, itself])
    return answers


if __name__ == "__main__":
    workers.main(globals())
