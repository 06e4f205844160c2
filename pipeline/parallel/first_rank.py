"""What one rank finds out for all."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from pipeline.errors import EsolmError

T = TypeVar("T")


def from_first_rank(ask: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What `ask` returns on rank 0, on every rank; collective over the group with rank 0.

    An EsolmError or an OSError that it raises there is raised on every rank: nobody is left waiting
    for an answer.
    """
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = ask()
        except (EsolmError, OSError) as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, group=group)
    found, problem = answer
    if problem is not None:
        raise problem
    return found  # type: ignore[no-any-return]
