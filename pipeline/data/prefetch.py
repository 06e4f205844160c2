"""Reading ahead in one background thread."""

import time
from collections import deque
from collections.abc import Iterator
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Iterator[T], Generic[T]):
    """An iterator whose next `depth` items are made in the background.

    An exception of the source is raised here, after the items before it. Close it (or use it as a
    context manager) when stopping before the end.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        assert depth >= 1
        self.wait_seconds = 0.0
        """Seconds that the consumer spent waiting since `reset_wait`."""
        self._source = source
        self._depth = depth
        self._ready: deque[T] = deque()
        self._changed = Condition()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._produce, name="prefetch", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    break
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._depth)
            if not self._stopped:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._stopped

    def __next__(self) -> T:
        started = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            self.wait_seconds += time.perf_counter() - started
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def reset_wait(self) -> float:
        """Return the seconds waited since the last reset, and count from zero again."""
        waited, self.wait_seconds = self.wait_seconds, 0.0
        return waited

    def close(self) -> None:
        """Stop the thread once it has made the item it is at, and drop what was read ahead."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(source: Iterator[T], depth: int) -> Prefetcher[T]:
    """Return an iterator over the same items that keeps up to `depth` of them ready."""
    return Prefetcher(source, depth)
