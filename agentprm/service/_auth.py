"""Who may do what: `Authorization: Bearer KEY`, checked before anything of a request is read."""

from __future__ import annotations

from contextvars import ContextVar

from fastapi import Depends
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from agentprm.keys import Keys, Scope
from agentprm.service._problems import ProblemError, refuse

OPEN = frozenset({"/health", "/docs", "/openapi.json"})
"""Paths that need no key."""

_GRANTED: ContextVar[Scope | None] = ContextVar("granted", default=None)


def granted() -> Scope | None:
    """What the caller may do; None for one who showed no valid key, at an open path."""
    return _GRANTED.get()


def require_admin() -> None:
    """Go on only for a caller who has an admin key, or where there are no keys.

    Raises:
        ProblemError: 403.
    """
    if granted() is not Scope.ADMIN:
        raise ProblemError(403, "Admin key needed", "this key may only read")


async def _admin() -> None:
    require_admin()


ADMIN = Depends(_admin)
"""For `dependencies` of a route that takes an admin key."""


class Authenticate:
    """Refuses requests and WebSockets without a valid key. Without keys everyone may do all."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        if connection["type"] in ("http", "websocket"):
            scope = self._scope(connection)
            if scope is None and connection["path"] not in OPEN:
                error = ProblemError(401, "No valid key", "send `Authorization: Bearer KEY`")
                await refuse(error, connection, receive, send)
                return
            _GRANTED.set(scope)
        await self.app(connection, receive, send)

    def _scope(self, connection: Connection) -> Scope | None:
        if not self.keys:
            return Scope.ADMIN
        given = dict(connection["headers"]).get(b"authorization", b"").decode("latin-1")
        scheme, _, key = given.partition(" ")
        return self.keys.scope_of(key.strip()) if scheme.lower() == "bearer" else None
