"""What is told of every request: its id, a line in the log, a count and a time."""

from __future__ import annotations

import time
from typing import Any

import structlog
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentprm import request_id

REQUESTS = Counter(
    "agentprm_http_requests_total", "Requests by route and status", ["service", "route", "status"]
)
LATENCY = Histogram(
    "agentprm_http_request_seconds", "Time to answer, by route", ["service", "route"]
)

LINES_PER_SECOND = 50.0
BURST = 200
"""Lines that may come at once, before `LINES_PER_SECOND` holds."""
UNMATCHED = "unmatched"
"""Stands for the route of a request that met none, or was refused before."""
LEFT = 499
"""Stands for the status of a request whose client left before it was answered."""
POLLED = frozenset({"/health", "/metrics"})
"""Routes that are asked all the time; only their failures are logged."""

_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})

log = structlog.get_logger()


class Observe:
    """Gives requests and WebSockets their id, and measures requests."""

    def __init__(self, app: ASGIApp, service: str) -> None:
        self.app = app
        self.service = service
        self._lines = _Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name = request_id.adopt(given)
        started = time.perf_counter()
        status = LEFT

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS:
                status = message.get("status", 101)
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", name.encode()),
                ]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            status = 500
            raise
        finally:
            self._tell(scope, status, time.perf_counter() - started)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        REQUESTS.labels(self.service, route, status).inc()
        if scope["type"] == "http":
            LATENCY.labels(self.service, route).observe(seconds)
        if route in POLLED and status < 400:
            return
        left_out = self._lines.admit()
        if left_out is None:
            return
        level = log.warning if status >= 500 else log.info
        fields: dict[str, Any] = {"left_out": left_out} if left_out else {}
        if route == UNMATCHED:
            fields["path"] = scope["path"][:200]
        method = scope.get("method", "WEBSOCKET")
        ms = round(1000 * seconds, 1)
        level("request", method=method, route=route, status=status, ms=ms, **fields)


class _Throttle:
    """A token bucket: a busy service says less about each request, and how much it left out."""

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._at = time.monotonic()
        self._left_out = 0

    def admit(self) -> int | None:
        """The lines left out since the last one, or None where this one is left out too."""
        now = time.monotonic()
        self._tokens = min(BURST, self._tokens + LINES_PER_SECOND * (now - self._at))
        self._at = now
        if self._tokens < 1.0:
            self._left_out += 1
            return None
        self._tokens -= 1.0
        left_out, self._left_out = self._left_out, 0
        return left_out
