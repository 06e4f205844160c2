"""Errors as clients of OpenAI's interface know them."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 503: "overloaded_error",
}  # fmt: skip


class ApiError(Exception):
    """status: of HTTP. param: the field of the request that is at fault, if one is."""

    def __init__(
        self, status: int, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.retry_after = retry_after


def body_of(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The object that a client gets."""
    message = message.encode(errors="replace").decode()  # it may quote what is no Unicode
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def answer(error: ApiError) -> JSONResponse:
    """An error as an answer."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    content = body_of(error.status, error.message, error.param)
    return JSONResponse(content, error.status, headers)


def fault_of(error: Exception) -> ApiError:
    """What a client is told of an exception that nobody expected; the log has the rest."""
    return ApiError(500, f"a fault of the server: {type(error).__name__}")


def of_validation(problems: Sequence[Any], body: Any) -> ApiError:
    """What is wrong with the body, as pydantic found it."""
    if problems[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problems[0].get('ctx', {}).get('error', '')}")
    # Of a union each alternative has its own problems. The one that was meant does not fail by its
    # type, or got furthest.
    found = [(_place(each, body), each) for each in problems]
    place, best = max(found, key=lambda each: (not _is_of_type(each[1]), len(each[0])))
    alike = [each for at, each in found if at == place and _is_of_type(each) == _is_of_type(best)]
    messages = list(dict.fromkeys(_message(each) for each in alike))
    said = " or ".join([messages[0], *(each.removeprefix("should be ") for each in messages[1:])])
    return ApiError(400, f"{'.'.join(place) or 'body'}: {said}", place[0] if place else None)


def _is_of_type(problem: Any) -> bool:
    return str(problem["type"]).endswith("_type")


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown field"
    if str(problem["type"]).startswith("model_"):
        return "should be an object"
    return str(problem["msg"]).removeprefix("Input ")


def _place(problem: Any, body: Any) -> tuple[str, ...]:
    """Where in the body: names and numbers, without pydantic's names of alternatives."""
    *front, last = [part for part in problem["loc"] if part != "body"] or [None]
    found: list[str] = []
    for part in [*front, last]:
        is_there = part in body if isinstance(body, dict) else isinstance(body, list)
        if is_there and (isinstance(body, dict) or isinstance(part, int)):
            found.append(str(part))
            body = body[part]
    return (*found, str(last)) if problem["type"] == "missing" and last is not None else (*found,)


class Faults:
    """Answers exceptions that nobody expected. Connections stay as they are, for the next one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it. Raises what comes when the answer has begun."""
        has_begun = False

        async def told(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception as error:  # of whatever kind
            if has_begun:
                raise
            logging.getLogger("uvicorn.error").exception("a fault of the server")
            await answer(fault_of(error))(scope, receive, send)


def install(app: FastAPI) -> None:
    """Makes every error of the application one of these."""
    app.add_middleware(Faults)

    @app.exception_handler(ApiError)
    async def own(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(of_validation(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        found = answer(ApiError(error.status_code, str(error.detail)))
        found.headers.update(error.headers or {})
        return found
