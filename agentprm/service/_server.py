"""uvicorn, with bounds on connections that send nothing, or little by little."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agentprm.keys import Keys, is_loopback
from agentprm.service._local import Local

CONNECTIONS = 4096
"""Most open connections; those beyond are closed at once."""
HEADER_SECONDS = 10.0
"""Until the headers of a request must have come, from its first byte or the connection's start."""
KEEP_ALIVE_SECONDS = 75
"""Until an idle connection is closed. Clients must give theirs up first (httpx does after five
seconds): a request on a connection that closes at that moment is lost. It outlasts a stalled
process too, since uvloop looks at its timers before it looks for what has come meanwhile."""
HEADER_BYTES = 2**16
"""Largest headers of a request."""
MESSAGE = 2**20
"""Largest WebSocket message, in bytes."""


class Http(HttpToolsProtocol):
    """HTTP/1.1 whose headers have to come in time, and be of a size."""

    _deadline: asyncio.TimerHandle | None = None
    """Runs while headers are coming."""
    _size = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.close()
        else:
            self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None:
            self._size += len(data)
            if self._size > HEADER_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._expect_headers()

    def on_headers_complete(self) -> None:
        self._have_headers()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_headers()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._size = 0
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _have_headers(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run until SIGTERM or SIGINT; requests in flight get ten seconds to end.

    Without keys only what this machine itself sends is answered on loopback, and elsewhere nothing
    that is sent to a public name, or by a page of one.
    """
    if not Keys.from_environment():
        app.add_middleware(Local, network=not is_loopback(host))
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=Http,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=10,
        ws_max_size=MESSAGE,
        ws_per_message_deflate=False,  # a read of small messages may hold hundreds of MiB of large
        backlog=2048,
    )
