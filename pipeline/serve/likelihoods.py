"""One thread for likelihoods by the network, which ends a job that nobody waits for any more."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from esolm.pipeline.serve.errors import ApiError

Result = TypeVar("Result")


class NobodyWaitsError(Exception):
    """Ends a job; nobody is there to be told."""


class Likelihoods:
    """Several at once would take memory away from the decoding, so they take turns."""

    def __init__(self, model: Any, seconds: float) -> None:
        """model: the network, each pass of which is a chance to end a job.

        seconds: the most that a request may take, likelihoods included.
        """
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, "likelihoods")
        self._local = threading.local()
        model.register_forward_pre_hook(self._before_a_pass)

    async def run(self, began: float, work: Callable[..., Result], *given: Any) -> Result:
        """Its result. When whoever awaits it is cancelled, it begins no further pass.

        began: when the request came in, by the monotonic clock. Raises ApiError if it has had its
        time, whether it waits for its turn or works; no further pass is begun then either.
        """
        is_left = threading.Event()

        def job() -> Result:
            self._local.is_left = is_left
            return work(*given)

        try:
            async with asyncio.timeout(began + self._seconds - time.monotonic()):
                return await asyncio.get_running_loop().run_in_executor(self._thread, job)
        except TimeoutError:
            message = f"the request took longer than {self._seconds:g} s, likelihoods included"
            raise ApiError(408, f"{message}: ask for fewer or shorter texts at once") from None
        finally:
            is_left.set()

    def _before_a_pass(self, *_: Any) -> None:
        is_left = getattr(self._local, "is_left", None)  # other threads have none
        if is_left is not None and is_left.is_set():
            raise NobodyWaitsError
