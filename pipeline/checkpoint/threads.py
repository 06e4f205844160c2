"""Files are written, checked and read by several threads of a rank at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

THREADS = 4
"""The threads of one rank: more do not make a disk faster, and a node has several ranks."""

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_threads(act: Callable[[Given], Made], each: Iterable[Given]) -> Iterator[Made]:
    """Calls `act` on each by several threads and yields the results in order, as `map` does.

    What `act` raises in a thread is raised here. The threads are daemons, unlike those of a
    ThreadPoolExecutor: one that hangs on a dead disk must not keep the process from ending.
    """
    outcomes = [(given, Future[Made]()) for given in each]
    waiting = deque(outcomes)

    def work() -> None:
        while waiting:
            try:
                given, outcome = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                outcome.set_result(act(given))
            except BaseException as error:
                outcome.set_exception(error)

    count = min(THREADS, len(outcomes))
    threads = [Thread(target=work, name=f"files_{i}", daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _, outcome in outcomes:
            yield outcome.result()
    finally:
        waiting.clear()
        for thread in threads:
            thread.join()
