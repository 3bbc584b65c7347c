"""No web page uses what serves this machine without keys.

A browser takes pages from anywhere and runs them here: one may send requests to other addresses of
its choice, and by a name of its own that resolves to 127.0.0.1 also read the answers.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from agentprm.keys import ACCEPTED, is_loopback
from agentprm.service._problems import ProblemError, refuse


class Local:
    """Refuses requests and WebSockets to a name of another machine, or from a page of one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = dict(scope["headers"])
            host, origin = headers.get(b"host"), headers.get(b"origin")
            for name, url in (("Host", host and b"//" + host), ("Origin", origin)):
                if url is not None and not _is_local(url.decode("latin-1")):
                    detail = f"without {ACCEPTED} only this machine is served; see the {name}"
                    await refuse(ProblemError(403, "Not local", detail), scope, receive, send)
                    return
        await self.app(scope, receive, send)


def _is_local(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
