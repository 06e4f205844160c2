"""Several servers of a bundle: Ray Serve keeps up their number and shares out the requests."""

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import Message

from esolm.data_prep.progress import phase
from esolm.pipeline.errors import ConfigError, EsolmError
from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.own_ray import CLUSTER, connected
from esolm.pipeline.serve.replica import BundleReplica
from esolm.pipeline.serve.server import Served
from esolm.pipeline.serve.service import ending

# A replica may take so many requests; its own engine says no long before.
MOST_REQUESTS = 10_000
HEALTH_SECONDS = 1.0
# One replica may end under a request, and the one that it is given to instead.
ATTEMPTS = 3
# After so long without an answer it is seen whether any replica is left.
PATIENCE_SECONDS = 5.0
SILENT_SECONDS = 20.0
RETRY_SECONDS = 10
LOST = (RayActorError, TaskCancelledError, DeploymentUnavailableError)


class LostError(Exception):
    """The replica has ended before it had answered to the end."""


class Fleet:
    """The replicas, and the requests that they have under way."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._open, self._changed = 0, threading.Condition()
        self._is_draining = False

    async def messages(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """A replica's answer as ASGI has it: the start, then at least one part.

        If the replica ends before the first part, another one is asked. Raises LostError if it
        ends later, ApiError if there is none or the fleet drains.
        """
        with self._under_way():
            for _ in range(ATTEMPTS):
                has_begun = False
                try:
                    async with aclosing(self._asked(scope, body)) as answer:
                        async for message in answer:
                            has_begun = True
                            yield message
                    return
                except LOST as error:
                    if has_begun:
                        raise LostError from error
            raise ApiError(503, "the replicas end under this request", retry_after=RETRY_SECONDS)

    async def _asked(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message]:
        """One replica's answer; its start is held back until there is a part."""
        answer = self._handle.options(stream=True).remote(scope, body)
        try:
            messages = aiter(answer)
            start = await self._first(messages)
            part = await anext(messages)
            yield start
            yield part
            async for message in messages:
                yield message
        finally:
            answer.cancel()

    async def _first(self, messages: AsyncIterator[Message]) -> Message:
        """Ray would wait for ever for a replica. Raises ApiError if there is none."""

        async def first() -> Message:
            return await anext(messages)

        task = asyncio.ensure_future(first())
        try:
            while not (await asyncio.wait([task], timeout=PATIENCE_SECONDS))[0]:
                if await self._is_empty():
                    raise ApiError(503, "no replica is up", retry_after=RETRY_SECONDS)
            return task.result()
        finally:
            task.cancel()

    async def _is_empty(self) -> bool:
        try:
            return not await self.figures()
        except ApiError:  # there is one, which takes its time
            return False

    async def figures(self) -> list[tuple[str, str]]:
        """The metrics of every replica, with its name. Raises ApiError if one is silent."""
        try:
            found = self._handle.broadcast("figures")
            answers = await found.results_async(timeout_s=SILENT_SECONDS, return_exceptions=True)
        except DeploymentUnavailableError:
            return []
        except TimeoutError:
            raise ApiError(503, "a replica does not answer", retry_after=RETRY_SECONDS) from None
        return [answer for answer in answers if not isinstance(answer, Exception)]

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._is_draining

    def drain(self) -> None:
        """Takes nothing more."""
        self._is_draining = True

    def wait_until_idle(self) -> None:
        """Returns once all requests are answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        with self._changed:
            if self._is_draining:
                raise ending()
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()


@contextmanager
def running(served: Served, replicas: int) -> Iterator[Fleet]:
    """The fleet, once every replica is up: on the Ray cluster of RAY_ADDRESS, or one of its own.

    Raises ConfigError if there are fewer GPUs than replicas, EsolmError if they do not come up.
    """
    with ExitStack() as stack:
        with phase(f"start {replicas} replicas"):
            cpus = stack.enter_context(connected(replicas))
            name = f"esolm-{secrets.token_hex(4)}"
            handle = _deploy(served, replicas, cpus, name)
        if CLUSTER in os.environ:  # one of our own ends as a whole
            stack.callback(serve.delete, name)
        yield Fleet(handle)


def _deploy(served: Served, replicas: int, cpus: int, name: str) -> DeploymentHandle[Any]:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < replicas:
        raise ConfigError(f"--replicas {replicas}: each needs a GPU, and Ray has {gpus}")
    deployment = serve.deployment(
        BundleReplica,
        name="Replica",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": 1 if gpus else 0},
        max_ongoing_requests=MOST_REQUESTS,
        health_check_period_s=HEALTH_SECONDS,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    logging.getLogger("ray.serve").setLevel("WARNING")
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
    try:
        return serve.run(deployment.bind(served), name=name, route_prefix=None)
    except RuntimeError as error:
        raise EsolmError(f"the replicas do not come up: {error}") from error
