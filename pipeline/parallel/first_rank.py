"""Lets one rank find something out for all."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from esolm.pipeline.errors import EsolmError

T = TypeVar("T")


def from_first_rank(ask: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Calls `ask` on rank 0 and returns its answer on every rank.

    It is collective over the group, which rank 0 belongs to. An EsolmError or an OSError that `ask`
    raises there is raised on every rank: nobody is left waiting for an answer.
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
