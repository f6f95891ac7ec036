"""Errors as the OpenAI API words them: a status and {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

from retinue.core.errors import DataError, EnvError, RequestError, RetinueError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable",
}


class ApiError(Exception):
    """What a client is told. param: the field at fault; code: a word for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def as_api(error: Exception) -> ApiError:
    """What went wrong with a request, for its sender: their fault or ours.

    Nothing of an unexpected error is told; it is in the log.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError | DataError):
        return ApiError(400, str(error), code="invalid_request")
    if isinstance(error, EnvError):
        return ApiError(503, "the server lacks something that this request needs", code="missing")
    if isinstance(error, RetinueError):
        return ApiError(400, str(error), code="invalid_request")
    return ApiError(500, "the server failed on this request", code="internal_error")


def refuse(message: str, param: str | None, code: str | None = None) -> ApiError:
    """A 400 for one field."""
    return ApiError(400, message, param=param, code=code)
