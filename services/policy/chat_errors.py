"""Errors as OpenAI's clients expect them, in answer to their requests and to strays."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel

from agentprm.protocol import CONTEXT_TOO_LONG
from agentprm.service import ProblemError
from services.policy.best_of_n import PRMUnavailableError

SERVED = "OpenAI's clients find POST /v1/chat/completions here, with a base_url that ends in /v1"
"""What is said to who asks for anything else."""


class Error(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer that is an error."""

    error: Error


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 408, 413, 429, 503)
}
"""The statuses of OpenAI's routes, as OpenAPI describes them."""


class NotServedError(ProblemError):
    """The model that was asked for does not serve, or no longer: a 404."""


def problem_response(error: ProblemError) -> Response:
    """A problem of the native API in OpenAI's shape."""
    problem = error.problem
    if isinstance(error, NotServedError):
        return error_response(404, problem.detail, param="model", code="model_not_found")
    code = "context_length_exceeded" if problem.title == CONTEXT_TOO_LONG else None
    if isinstance(error, PRMUnavailableError):
        code = "prm_unavailable"
    status = 400 if problem.status == 422 else problem.status
    return error_response(status, problem.detail or problem.title, code=code)


def stray_response(error: ProblemError) -> Response:
    """A problem with OpenAI's error beside it: who asks for what is not here may be any client."""
    problem = error.problem
    body = problem.model_dump(exclude_none=True)
    body["error"] = _said(problem.status, f"{problem.detail}. {SERVED}")
    return Response(orjson.dumps(body), problem.status, media_type="application/problem+json")


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    """An error in OpenAI's shape. `param` is the field of the request that is wrong."""
    body = {"error": _said(status, message, param=param, code=code)}
    return Response(orjson.dumps(body), status, media_type="application/json")


def _said(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"message": message, "type": _kind(status), "param": param, "code": code}


def _kind(status: int) -> str:
    if status < 429:
        return "invalid_request_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error"
