"""The routes, and what stands before them: the key, the size of a body."""

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esolm.pipeline.serve import errors
from esolm.pipeline.serve.answers import (
    CompletionAnswer,
    InfillAnswer,
    ModelsAnswer,
    ScoreAnswer,
    StatusAnswer,
    TextAnswer,
    TokensAnswer,
)
from esolm.pipeline.serve.completions import Completion
from esolm.pipeline.serve.description import (
    BEHIND_KEY,
    OF_BODIES,
    OF_WORK,
    answers,
    describe,
)
from esolm.pipeline.serve.errors import ApiError
from esolm.pipeline.serve.infill import Infill
from esolm.pipeline.serve.schemas import (
    CompletionRequest,
    InfillRequest,
    ScoreRequest,
    TextOfTokens,
    TokensOfText,
)
from esolm.pipeline.serve.score import score
from esolm.pipeline.serve.service import Service, ending
from esolm.pipeline.serve.sse import stream, unless_gone

MAX_BODY_BYTES = 4 << 20
OPEN_PATHS = ("/", "/health", "/ready", "/metrics", "/docs", "/openapi.json")
COMPLETIONS = answers(CompletionAnswer, OF_WORK, streams=True)
INFILLINGS = answers(InfillAnswer, OF_WORK, streams=True)
PAGE = Path(__file__).parent / "page"


class BodyLimit:
    """Refuses bodies over MAX_BODY_BYTES, whether or not they say their length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body, and hands it on if it is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        read: list[Message] = []
        size, arrived = int(stated) if stated.isdigit() else 0, 0
        while size <= MAX_BODY_BYTES:
            read.append(await receive())
            arrived += len(read[-1].get("body", b""))
            size = max(size, arrived)
            if not read[-1].get("more_body"):
                break
        if size > MAX_BODY_BYTES:
            await too_large()(scope, receive, send)
            return

        async def again() -> Message:
            return read.pop(0) if read else await receive()

        await self._app(scope, again, send)


def too_large() -> JSONResponse:
    """The answer to such a body."""
    message = f"the body has more than {MAX_BODY_BYTES >> 20} MiB"
    return errors.answer(ApiError(413, message))


def guard(app: FastAPI, api_key: str | None) -> None:
    """What every request has to pass. api_key: what clients must show, if anything."""
    errors.install(app)
    app.add_middleware(BodyLimit)

    @app.middleware("http")
    async def key(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        path = request.url.path
        is_open = api_key is None or path in OPEN_PATHS or path.startswith("/page/")
        if not is_open and not hmac.compare_digest(shown.encode(), (api_key or "").encode()):
            return errors.answer(ApiError(401, "show the key: Authorization: Bearer KEY"))
        return await go_on(request)


def make_app(service: Service, api_key: str | None) -> FastAPI:
    """The application. api_key: see `guard`."""
    app = FastAPI(title="esolm serve", redoc_url=None)
    guard(app, api_key)
    describe(app, api_key is not None)

    @app.post("/v1/completions", response_model=None, responses=COMPLETIONS)
    async def completions(body: CompletionRequest, request: Request) -> Response | dict[str, Any]:
        work = await service.aside(Completion, service, body)
        if body.stream:
            return await stream(request, work.chunks())
        return await unless_gone(request, work.whole())

    @app.post("/v1/infill", response_model=None, responses=INFILLINGS)
    async def infill(body: InfillRequest, request: Request) -> Response | dict[str, Any]:
        work = await service.aside(Infill, service, body)
        if body.stream:
            return await stream(request, work.chunks())
        return await unless_gone(request, work.whole())

    @app.post("/v1/score", responses=answers(ScoreAnswer, OF_WORK))
    async def score_texts(body: ScoreRequest, request: Request) -> dict[str, Any]:
        with service.scoring():
            return await unless_gone(request, score(service, body))

    _add_small_routes(app, service)
    return app


def _add_small_routes(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", responses=answers(TokensAnswer, OF_BODIES))
    async def tokenize(body: TextOfTokens) -> dict[str, Any]:
        service.check_model(body.model)
        ids = await service.aside(service.ids, body.prompt, "prompt")
        return {"tokens": ids, "count": len(ids), "max_model_len": service.max_length}

    @app.post("/detokenize", responses=answers(TextAnswer, OF_BODIES))
    async def detokenize(body: TokensOfText) -> dict[str, Any]:
        service.check_model(body.model)
        await service.aside(service.check_ids, body.tokens, "tokens")
        return {"prompt": await service.aside(service.tokenizer.decode, body.tokens)}

    @app.get("/v1/models", responses=answers(ModelsAnswer, BEHIND_KEY))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card()]}

    @app.get("/health", responses=answers(StatusAnswer))
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses=answers(StatusAnswer, (503,)))
    async def ready() -> dict[str, str]:
        if service.engine.is_draining:
            raise ending()
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))
