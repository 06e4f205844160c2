"""What the server says of itself at `/openapi.json`: answers, errors, and the key."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from esolm.pipeline.serve.answers import ErrorAnswer

REASONS = {
    400: "The request cannot be met; `param` names the field",
    401: "The key was not shown",
    404: "There is no such model",
    408: "The request took too long",
    413: "The body is too large",
    429: "The server is full; `Retry-After` says when to come back",
    500: "A fault of the server",
    503: "The server is ending",
}
BEHIND_KEY = (401,)
OF_BODIES = (*BEHIND_KEY, 400, 404, 413)
OF_WORK = (*OF_BODIES, 408, 429, 503)


def answers(model: type[BaseModel], statuses: tuple[int, ...] = (), streams: bool = False) -> Any:
    """FastAPI's `responses` of a route. statuses: its errors, beside 500."""
    found: dict[int, Any] = {
        status: {"model": ErrorAnswer, "description": REASONS[status]}
        for status in sorted({500, *statuses})
    }
    found[200] = {"model": model, "description": "The answer"}
    if streams:
        found[200]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return found


def describe(app: FastAPI, has_key: bool) -> None:
    """Errors of validation are answered by 400 here, where FastAPI would say 422.

    A key is due on the routes whose answers may be 401.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, has_key)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's manual says


def _described(app: FastAPI, has_key: bool) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operations in found["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if has_key and "401" in operation["responses"]:
                operation["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        found["components"]["schemas"].pop(name, None)
    if has_key:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found
