"""Server-sent events, and answers that end when the client does."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from esolm.pipeline.serve.errors import ApiError, body_of, fault_of

DONE = "data: [DONE]\n\n"
CLIENT_GONE = 499
Result = TypeVar("Result")


def line(content: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class ClosingResponse(StreamingResponse):
    """Closes what its content comes from, however it ends.

    A client may leave between two parts. The content then waits for the next one to be taken, until
    Python looks for garbage, which may be long.
    """

    def __init__(self, source: AsyncIterator[Any], content: AsyncIterator[Any], **how: Any) -> None:
        super().__init__(content, **how)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        async with aclosing(self._source):  # type: ignore[type-var]  # every generator has aclose
            await super().__call__(scope, receive, send)


async def stream(request: Request, chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """The chunks as they come. What fails before the first one is an answer of its own."""
    first = await unless_gone(request, anext(chunks, None))

    async def lines() -> AsyncIterator[str]:
        try:
            if first is not None:
                yield line(first)
            async for chunk in chunks:
                yield line(chunk)
        except ApiError as error:
            yield line(body_of(error.status, error.message, error.param))
        except Exception as error:  # of whatever kind: the status has long been sent
            logging.getLogger("uvicorn.error").exception("a stream broke off")
            fault = fault_of(error)
            yield line(body_of(fault.status, fault.message))
        yield DONE

    headers = {"Cache-Control": "no-cache"}
    return ClosingResponse(chunks, lines(), media_type="text/event-stream", headers=headers)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Its result. When the client goes away, the work is given up."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
    raise ApiError(CLIENT_GONE, "the client has gone")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
