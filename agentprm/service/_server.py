"""uvicorn, with bounds on connections that send nothing, or little by little."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 4096
"""Most open connections; those beyond are closed at once."""
HEADER_SECONDS = 10.0
"""Until the headers of a request must have come, from its first byte or the connection's start."""
MESSAGE = 2**20
"""Largest WebSocket message, in bytes."""


class Http(H11Protocol):
    """HTTP/1.1 whose headers have to come in time."""

    _headers: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.close()
        else:
            self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel()
        elif self._headers is None:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._headers = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _cancel(self) -> None:
        if self._headers is not None:
            self._headers.cancel()
            self._headers = None


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run until SIGTERM or SIGINT; requests in flight get ten seconds to end."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=Http,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        ws_max_size=MESSAGE,
        backlog=2048,
    )
