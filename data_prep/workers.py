"""Running the tasks of a job in this process or in several, with progress."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from ctypes import Array, c_longlong
from typing import Any, TypeAlias

from esolm.data_prep.errors import EsolmError
from esolm.data_prep.processes import die_with_parent
from esolm.data_prep.progress import ProgressBar
from esolm.data_prep.tokenizing import run_task

POLL_SECONDS = 0.2
RunTask: TypeAlias = Callable[[Any, int, Callable[[int], None]], dict[str, int]]
"""What is done for a task of a job: `run_task`, a pass of `comparing`, or `pack_task`. Each takes
a job of its own kind."""

# Bytes done of each task. Only the worker of a task writes its place, so there is no lock, which a
# killed worker would keep for ever.
_done_bytes: "Array[c_longlong] | None" = None


def _begin_worker(done_bytes: "Array[c_longlong]", parent: int) -> None:
    global _done_bytes
    _done_bytes = done_bytes
    die_with_parent(parent)


def _run_in_worker(run: RunTask, job: Any, task: int, place: int) -> dict[str, int]:
    done_bytes = _done_bytes
    assert done_bytes is not None

    def add(num_bytes: int) -> None:
        done_bytes[place] += num_bytes

    return run(job, task, add)


def _nothing() -> None:
    """What a pool is asked for to be woken."""


def run_tasks(
    job: Any,
    tasks: Sequence[int],
    num_workers: int,
    progress: ProgressBar,
    run: RunTask = run_task,
) -> list[dict[str, int]]:
    """Run tasks in `num_workers` processes and return the counts of each, in the order of `tasks`.

    The output does not depend on the number of workers. If tasks fail, the error of the first of
    them is raised here after the tasks that have started came to their end. Raises EsolmError if a
    worker is killed; the others end then, as they do when this process is killed.
    """
    if num_workers <= 1 or len(tasks) <= 1:
        done = _Total(progress.update)
        return [run(job, task, done.add) for task in tasks]
    try:
        return _run_in_pool(run, job, tasks, num_workers, progress)
    except BrokenProcessPool as error:
        raise EsolmError(
            "A worker process was killed, as happens when memory runs out. Run the same command "
            f"again, with fewer than {num_workers} --workers or more memory: finished tasks are "
            "skipped."
        ) from error


def _run_in_pool(
    run: RunTask, job: Any, tasks: Sequence[int], num_workers: int, progress: ProgressBar
) -> list[dict[str, int]]:
    # Workers are not forked, because the parent may have threads (the progress bar) with locks.
    context: Any = multiprocessing.get_context("spawn")
    done_bytes = context.RawArray(c_longlong, len(tasks))
    begin = (done_bytes, os.getpid())
    with ProcessPoolExecutor(min(num_workers, len(tasks)), context, _begin_worker, begin) as pool:
        futures = [
            pool.submit(_run_in_worker, run, job, task, place) for place, task in enumerate(tasks)
        ]
        # A pool starts a worker after the call that wakes it, and watches those it knew when it
        # woke: without one call more, nobody would see that its last worker was killed.
        pool.submit(_nothing)
        _watch(futures, lambda: progress.update(sum(done_bytes)))
        pool.shutdown(cancel_futures=any(_failed(future) for future in futures))
    for future in futures:
        if _failed(future):
            future.result()
    return [future.result() for future in futures]


class _Total:
    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._total = 0

    def add(self, num_bytes: int) -> None:
        self._total += num_bytes
        self._report(self._total)


def _failed(future: "Future[Any]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


def _watch(futures: "list[Future[dict[str, int]]]", report: Callable[[], None]) -> None:
    while True:
        _, pending = wait(futures, POLL_SECONDS, FIRST_EXCEPTION)
        report()
        if not pending or any(_failed(future) for future in futures):
            return
