"""One of several servers of a bundle, in a process of Ray Serve's."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from starlette.types import Message

from esolm.pipeline.serve.app import make_app
from esolm.pipeline.serve.server import Served


class BundleReplica:
    """The application, called with requests as ASGI has them."""

    def __init__(self, served: Served) -> None:
        """Raises as `Served.open`."""
        self._service = served.open()
        self._app = make_app(self._service, None)  # the front has asked for the key

    async def __call__(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """The messages of the answer. Whoever closes it early ends the work at the request."""
        said: asyncio.Queue[Message | None] = asyncio.Queue()
        request = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if request:
                return request.pop()
            return await asyncio.Future()  # a client that leaves ends this generator instead

        async def answer() -> None:
            try:
                await self._app(scope, receive, said.put)
            finally:
                await said.put(None)

        task = asyncio.create_task(answer())
        try:
            is_over = False
            while (message := await said.get()) is not None:
                is_over = message["type"] == "http.response.body" and not message.get("more_body")
                yield message
            if not is_over:
                await task  # raises what kept it from its end
            elif (error := task.exception()) is not None:
                # Of this the client has been told; the trace goes where the server's own go.
                logging.getLogger("uvicorn.error").error("a request failed", exc_info=error)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def figures(self) -> tuple[str, str]:
        """This replica's name and its metrics, as Prometheus reads them."""
        name = serve.get_replica_context().replica_id.unique_id
        return name, self._service.metrics.text().decode()

    def check_health(self) -> None:
        """Called by Ray Serve; what raises is replaced."""
        if not self._service.engine.is_alive:
            raise RuntimeError("the thread that decodes has ended")
