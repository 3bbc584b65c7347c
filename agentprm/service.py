"""What every HTTP service shares: problem bodies, limits, metrics, logs, `/health` and `/metrics`.

A service is `create_app(name, health)` plus its own routes, and `serve(app, host, port)`.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import orjson
import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentprm.protocol import Health, Problem

MAX_BODY = 16 * 2**20
"""Largest request body, in bytes."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

REQUESTS = Counter(
    "agentprm_http_requests_total", "Requests by route and status", ["service", "route", "status"]
)
LATENCY = Histogram(
    "agentprm_http_request_seconds", "Time to answer, by route", ["service", "route"]
)


class ProblemError(Exception):
    """An answer that is a problem (RFC 9457). Raise it anywhere below a route."""

    def __init__(
        self, status: int, title: str, detail: str = "", *, retry_after: float | None = None
    ) -> None:
        super().__init__(detail or title)
        self.problem = Problem(title=title, status=status, detail=detail)
        self.retry_after = retry_after


def json_response(body: BaseModel, status: int = 200) -> Response:
    """A model as JSON, straight from its fields."""
    return Response(body.model_dump_json(), status, media_type="application/json")


def problem_response(problem: Problem, *, retry_after: float | None = None) -> Response:
    """A problem as `application/problem+json`."""
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return Response(
        orjson.dumps(problem.model_dump()),
        problem.status,
        headers,
        media_type="application/problem+json",
    )


def create_app(
    name: str,
    health: Callable[[], Health],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """A FastAPI app with the shared behaviour. `health` is called for `GET /health`."""
    app = FastAPI(title=f"AgentPRM {name}", lifespan=lifespan)
    app.add_middleware(_Observe, service=name)
    app.add_middleware(_BodyLimit, limit=MAX_BODY)

    @app.exception_handler(ProblemError)
    async def _problem(_: Request, error: ProblemError) -> Response:
        return problem_response(error.problem, retry_after=error.retry_after)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        detail = f"{where}: {first['msg']}"
        return problem_response(Problem(title="Invalid request", status=422, detail=detail))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return problem_response(Problem(title=str(error.detail), status=error.status_code))

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        structlog.get_logger().error("bug", path=request.url.path, exc_info=error)
        detail = "This is a defect of the service; its log has the details."
        return problem_response(Problem(title="Internal error", status=500, detail=detail))

    @app.get("/health")
    async def _health() -> Response:
        # 200 also while loading: it lives, and can be told what to load.
        return json_response(health())

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run until SIGTERM or SIGINT; requests in flight get ten seconds to end."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=10,
        backlog=2048,
    )


def configure_logging(service: str, *, json: bool = True) -> None:
    """Structured logs on stderr, one JSON object a line, each with the service's name."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=lambda v, **_: orjson.dumps(v).decode())
            if json
            else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)


class _BodyLimit:
    """Refuses bodies over the limit with a 413, whether or not they announce their length."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > self.limit:
                problem = Problem(
                    title="Body too large", status=413, detail=f"at most {self.limit} bytes"
                )
                await problem_response(problem)(scope, receive, send)
                return
        body: Message | None = {"type": "http.request", "body": b"".join(chunks)}

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = body, None
            return message

        await self.app(scope, replay, send)


class _Observe:
    """Request ids in logs and answers, counts and latencies in metrics."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            REQUESTS.labels(self.service, route, status).inc()
            LATENCY.labels(self.service, route).observe(time.perf_counter() - started)
