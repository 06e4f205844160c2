import threading
import time
from collections.abc import Iterator

import pytest

from esolm.pipeline.data.prefetch import prefetch


def counting(made: list[int], stop: int = 10**9) -> Iterator[int]:
    for i in range(stop):
        made.append(i)
        yield i


def failing(after: int) -> Iterator[int]:
    yield from range(after)
    raise ValueError("the source failed")


def test_items_come_in_order_and_end() -> None:
    items = prefetch(iter(range(100)), 4)
    assert list(items) == list(range(100))
    with pytest.raises(StopIteration):
        next(items)
    items.close()


def test_exception_is_raised_after_the_items_before_it() -> None:
    with prefetch(failing(3), 8) as items:
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the source failed"):
            next(items)
        with pytest.raises(StopIteration):
            next(items)


def test_no_more_than_depth_is_read_ahead() -> None:
    made: list[int] = []
    with prefetch(counting(made), 3) as items:
        assert next(items) == 0
        time.sleep(0.1)
        assert len(made) <= 1 + 3 + 1


def test_close_stops_the_thread_of_a_full_queue() -> None:
    threads = threading.active_count()
    items = prefetch(counting([]), 2)
    next(items)
    items.close()
    items.close()
    assert threading.active_count() == threads


def test_waiting_is_measured_and_reset() -> None:
    def slow() -> Iterator[int]:
        for i in range(3):
            time.sleep(0.05)
            yield i

    with prefetch(slow(), 1) as items:
        next(items)
        assert items.wait_seconds > 0.02
        assert items.reset_wait() > 0.02
        assert items.wait_seconds == 0.0
