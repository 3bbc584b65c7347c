"""Bounds on what a client can make a service hold: bodies, requests, sockets, and time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import Gauge
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentprm.service._problems import ProblemError, refuse

IN_FLIGHT = Gauge("agentprm_http_requests_in_flight", "Requests being answered", ["service"])
SOCKETS = Gauge("agentprm_websockets", "WebSockets open", ["service"])

UNBOUNDED = frozenset({"/health", "/metrics"})
"""What answers also where nothing else can; it reads no body and waits for nothing."""


@dataclass(frozen=True)
class Limits:
    """What one process takes. Sizes in bytes, times in seconds."""

    body: int = 16 * 2**20
    """Largest body of a request."""
    bodies: int = 512 * 2**20
    """Largest sum of the bodies of all requests being answered."""
    body_seconds: float = 30.0
    """Until a body must have come."""
    requests: int = 1024
    """Most requests being answered."""
    sockets: int = 1024
    """Most WebSockets open."""
    seconds: float = 300.0
    """Until a request must have been answered."""
    slower: Mapping[str, float] = field(default_factory=dict)
    """`seconds` of paths that may take longer."""


class Bound:
    """Refuses what is over the limits; gives a request up when its time is over."""

    def __init__(self, app: ASGIApp, service: str, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self._requests = 0
        self._sockets = 0
        self._bytes = 0
        self._in_flight = IN_FLIGHT.labels(service)
        self._open = SOCKETS.labels(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] not in UNBOUNDED:
            await self._request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._sockets >= self.limits.sockets:
            await refuse(_overloaded(f"{self._sockets} sockets are open"), scope, receive, send)
            return
        self._sockets += 1
        self._open.inc()
        try:
            await self.app(scope, receive, send)
        finally:
            self._sockets -= 1
            self._open.dec()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._requests >= self.limits.requests:
            error = _overloaded(f"{self._requests} requests are under way")
            await refuse(error, scope, receive, send)
            return
        self._requests += 1
        self._in_flight.inc()
        body: list[bytes] = []
        try:
            if await self._read(body, scope, receive):
                body = [b"".join(body)]
                await self._within_time(body[0], scope, receive, send)
        except ProblemError as error:
            await refuse(error, scope, receive, send)
        finally:
            self._bytes -= sum(map(len, body))
            self._requests -= 1
            self._in_flight.dec()

    async def _read(self, body: list[bytes], scope: Scope, receive: Receive) -> bool:
        """Read all parts of the body into `body`; False where the client left meanwhile.

        `body` has the parts also where this raises: by it the caller knows what `_bytes` counts.

        Raises:
            ProblemError: 408, 413, or 503 where all bodies together are too large.
        """
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self.limits.body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                size = 0
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    chunk = message.get("body", b"")
                    body.append(chunk)
                    size += len(chunk)
                    self._bytes += len(chunk)
                    more = message.get("more_body", False)
                    if size > self.limits.body:
                        raise self._too_large()
                    if self._bytes > self.limits.bodies:
                        raise _overloaded("the bodies under way fill the memory for them")
        except TimeoutError:
            detail = f"the body did not come within {self.limits.body_seconds:g} s"
            raise ProblemError(408, "Request too slow", detail) from None
        return True

    async def _within_time(
        self, content: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        body: Message | None = {"type": "http.request", "body": content}
        begun = False

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = body, None
            return message

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        seconds = self.limits.slower.get(scope["path"], self.limits.seconds)
        try:
            async with asyncio.timeout(seconds) as timeout:
                await self.app(scope, replay, noting)
        except TimeoutError:
            if begun or not timeout.expired():
                raise
            raise ProblemError(
                503, "Not in time", f"no answer after {seconds:g} s", retry_after=5
            ) from None

    def _too_large(self) -> ProblemError:
        return ProblemError(413, "Body too large", f"at most {self.limits.body} bytes")


def _overloaded(detail: str) -> ProblemError:
    return ProblemError(503, "Overloaded", detail, retry_after=1)
