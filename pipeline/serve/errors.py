"""Errors as clients of OpenAI's interface know them."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

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
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def answer(error: ApiError) -> JSONResponse:
    """An error as an answer."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    content = body_of(error.status, error.message, error.param)
    return JSONResponse(content, error.status, headers)


def of_validation(problems: Sequence[Any]) -> ApiError:
    """The first problem of those that pydantic found."""
    first = problems[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    # Parts of a union name the alternatives that did not fit: only the field itself is of use.
    param = place[0] if place else None
    message = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
    return ApiError(400, f"{'.'.join(place) or 'body'}: {message}", param)


def install(app: FastAPI) -> None:
    """Makes every error of the application one of these."""

    @app.exception_handler(ApiError)
    async def own(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, str(error.detail)))
