"""Problems (RFC 9457): what a service answers where it cannot do what was asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import Counter
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from agentprm import request_id
from agentprm.protocol import FieldError, Problem

MAX_ERRORS = 10
"""Most fields that a problem names."""
MAX_PART = 200
"""Most characters of a field's name, or of what is said about it: some of them the client sent."""
MAX_DETAIL = 1000
"""Most characters of what a problem says."""

PROBLEMS = Counter("agentprm_http_problems_total", "Problems by their kind", ["service", "problem"])

Shape = Callable[["ProblemError"], Response]


class ProblemError(Exception):
    """An answer that is a problem (RFC 9457). Raise it anywhere below a route.

    The problem's type is made of the title, which therefore names a kind and no occurrence.
    `retry_after`, in seconds, goes into the header of that name; `errors` are the fields at fault.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        *,
        retry_after: float | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(detail or title)
        self.problem = Problem(
            type=f"urn:agentprm:problem:{_slug(title)}",
            title=title,
            status=status,
            detail=detail,
            errors=list(errors) or None,
        )
        self.retry_after = retry_after


def json_response(body: BaseModel) -> Response:
    """A model as JSON, straight from its fields."""
    return Response(body.model_dump_json(), media_type="application/json")


def shape_problems(app: FastAPI, path: str, shape: Shape) -> None:
    """Let `shape` make the body of every problem at `path`, and at those below it where it ends in
    a slash: for protocols with their own errors.

    Where `path` is empty, of the 404 or 405 of every path that is not served.
    """
    app.state.shapes[path] = shape


async def refuse(error: ProblemError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem, from a middleware."""
    await _answer(scope, error)(scope, receive, send)


def add_handlers(app: FastAPI, service: str) -> None:
    """Answer with problems for everything that is raised below `app`'s routes."""
    app.state.service = service
    app.state.shapes = {}

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> Response:
        return _answer(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        errors = [_field(found) for found in error.errors()[:MAX_ERRORS]]
        first = errors[0]
        detail = f"{'.'.join(map(str, first.loc))}: {first.msg}"
        sent = request.headers.get("content-type", "nothing")
        if list(first.loc) == ["body"] and "json" not in sent:
            detail = f"send the body as content-type: application/json, not {_legible(sent)}"
        return _answer(request.scope, ProblemError(422, "Invalid request", detail, errors=errors))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        detail = ""
        if error.status_code == 400:  # FastAPI does not say which of them
            detail = "the body is no JSON in UTF-8, is nested too deeply, or has too large a number"
        if error.status_code in (404, 405):  # often the port of another service
            asked = f"{request.method} {request.url.path[:MAX_PART]}"
            detail = f"this is the {service} service; it has no {asked}; /docs lists what it has"
        problem = ProblemError(error.status_code, str(error.detail), detail)
        response = _answer(request.scope, problem, served=error.status_code not in (404, 405))
        response.headers.update(error.headers or {})
        if error.status_code == 405:  # by itself, a route lists its own methods alone
            response.headers["Allow"] = ", ".join(sorted(_methods(app, request.scope)))
        return response

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        structlog.get_logger().error("bug", path=request.url.path[:MAX_PART], exc_info=error)
        detail = "This is a defect of the service; its log has the details."
        response = _answer(request.scope, ProblemError(500, "Internal error", detail))
        # What was raised has passed the middleware that gives other answers their id.
        response.headers[request_id.HEADER] = request_id.current() or ""
        return response


def _methods(app: FastAPI, scope: Scope) -> set[str]:
    """The methods of all routes with the path of the one that is met first."""
    routes = [(getattr(route, "path", None), route) for route in _flat(app.routes)]
    met = next((path for path, route in routes if route.matches(scope)[0] is not Match.NONE), None)
    same = [route for path, route in routes if path == met]
    return {method for route in same for method in getattr(route, "methods", None) or ()}


def _flat(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """The routes, with those of the routers among them in their place."""
    for route in routes:
        router = getattr(route, "original_router", None)
        yield from [route] if router is None else _flat(router.routes)


def _answer(scope: Scope, error: ProblemError, *, served: bool = True) -> Response:
    state = scope["app"].state
    PROBLEMS.labels(state.service, _slug(error.problem.title)).inc()
    occurrence = request_id.current()
    error.problem = error.problem.model_copy(
        update={
            "detail": _legible(error.problem.detail, MAX_DETAIL),
            "instance": occurrence and f"urn:agentprm:request:{occurrence}",
        }
    )
    response = _shape(state.shapes, scope["path"], served=served)(error)
    if error.problem.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return response


def _shape(shapes: Mapping[str, Shape], path: str, *, served: bool) -> Shape:
    above = next((p for p in shapes if p.endswith("/") and path.startswith(p)), None)
    default = _as_problem if served else shapes.get("", _as_problem)
    return shapes.get(above or path, default)


def _as_problem(error: ProblemError) -> Response:
    return Response(
        error.problem.model_dump_json(exclude_none=True),
        error.problem.status,
        media_type="application/problem+json",
    )


def _field(error: Any) -> FieldError:
    if error["type"] == "json_invalid":  # FastAPI says in place of a field where it stopped reading
        body, at = error["loc"]
        return FieldError(loc=[body], msg=f"no JSON: {error['ctx']['error']} at character {at}")
    loc = [part if isinstance(part, int) else _legible(part) for part in error["loc"]]
    return FieldError(loc=loc, msg=_legible(error["msg"]))


def _legible(text: str, length: int = MAX_PART) -> str:
    """A text that a client may have chosen, short and in characters that can be sent."""
    return text[:length].encode(errors="replace").decode()


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
