"""Lets one rank find something out for all."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from esolm.pipeline.errors import EsolmError

T = TypeVar("T")


def from_first_rank(ask: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Calls `ask` on rank 0 and returns its answer on every rank.

    It is collective over the group, which rank 0 belongs to. What `ask` raises there is raised on
    every rank, so that nobody is left waiting for an answer; the others have a RuntimeError for
    what is neither an EsolmError nor an OSError, because not every exception can be sent.
    """
    answer: list[Any] = [None, None]
    fault: Exception | None = None
    if dist.get_rank() == 0:
        try:
            answer[0] = ask()
        except (EsolmError, OSError) as error:
            answer[1] = error
        except Exception as error:
            fault = error
            answer[1] = RuntimeError(f"on rank 0: {type(error).__name__}: {error}")
    dist.broadcast_object_list(answer, src=0, group=group)
    if fault is not None:
        raise fault
    found, problem = answer
    if problem is not None:
        if isinstance(problem, EsolmError):
            problem.told = dist.get_rank() > 0  # one message is enough
        raise problem
    return found  # type: ignore[no-any-return]
