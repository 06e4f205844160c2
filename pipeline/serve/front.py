"""The address of several replicas: asks for the key, hands requests on, and tells how all fare."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.types import Message

from esolm.pipeline.run.sections import API_KEY
from esolm.pipeline.serve.app import guard
from esolm.pipeline.serve.errors import ApiError, body_of
from esolm.pipeline.serve.fleet import RETRY_SECONDS, Fleet, LostError, running
from esolm.pipeline.serve.server import Address, Served, listen
from esolm.pipeline.serve.service import ending
from esolm.pipeline.serve.sse import DONE, ClosingResponse, line, unless_gone

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# Of what ASGI says of a request, that which can be sent to another process.
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "root_path",
         "query_string", "headers", "client", "server")  # fmt: skip
LOST = body_of(503, "the replica that wrote this has ended; ask again")


def serve_replicas(served: Served, address: Address, replicas: int) -> None:
    """Until it is told to end. Raises as `Served.check` and `running`."""
    served.check()
    # Replicas have another working directory.
    with running(replace(served, path=served.path.resolve()), replicas) as fleet:
        listen(make_front(fleet, os.environ.get(API_KEY)), fleet, address)


def make_front(fleet: Fleet, api_key: str | None) -> FastAPI:
    """The application. api_key: see `guard`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    guard(app, api_key)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        if fleet.is_draining:
            raise ending()
        if not (answered := len(await fleet.figures())):
            raise ApiError(503, "no replica is up", retry_after=RETRY_SECONDS)
        return {"status": "ready", "replicas": answered}

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        registry = CollectorRegistry()
        registry.register(Together(await fleet.figures()))
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    @app.api_route("/{path:path}", methods=METHODS, response_model=None)
    async def relay(request: Request) -> Response:
        scope = {key: request.scope[key] for key in SCOPE if key in request.scope}
        messages = fleet.messages(scope, await request.body())
        start, first = await unless_gone(request, _begin(messages))
        is_stream = (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
        content = _stream(first, messages) if is_stream else _parts(first, messages)
        response = ClosingResponse(messages, content, status_code=start["status"])
        response.raw_headers = list(start["headers"])
        return response

    return app


async def _begin(messages: AsyncIterator[Message]) -> tuple[Message, Message]:
    return await anext(messages), await anext(messages)


async def _parts(first: Message, messages: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    """Of a body. What fails on the way breaks the connection off, or half would pass for whole."""
    yield first.get("body", b"")
    async for message in messages:
        yield message.get("body", b"")


async def _stream(first: Message, messages: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    """Of server-sent events, whose last may be an error."""
    try:
        async for part in _parts(first, messages):
            yield part
    except LostError:
        yield (line(LOST) + DONE).encode()


class Together(Collector):
    """The metrics of every replica, told apart by a label."""

    def __init__(self, figures: list[tuple[str, str]]) -> None:
        self._figures = figures

    def collect(self) -> list[Metric]:
        """Called by the registry."""
        found: dict[str, Metric] = {}
        for replica, text in self._figures:
            for family in text_string_to_metric_families(text):
                whole = found.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    whole.add_sample(sample.name, {**sample.labels, "replica": replica},
                                     sample.value)  # fmt: skip
        count = GaugeMetricFamily("esolm:replicas", "Replicas that answer", len(self._figures))
        return [*found.values(), count]
