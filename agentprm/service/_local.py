"""No web page uses what is served without keys.

A browser takes pages from anywhere and runs them here: one may send requests to other addresses of
its choice, and by a name of its own that resolves to 127.0.0.1 also read the answers.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from agentprm.keys import ACCEPTED, is_loopback
from agentprm.service._problems import ProblemError, refuse

_PRIVATE = (".internal", ".local", ".localhost")
"""What names end in that public name servers do not know (RFC 6761, RFC 6762, ICANN 2024)."""


class Local:
    """Refuses requests and WebSockets to a name of another machine, or from a page of one.

    With `network` those of one's own network are let through: addresses, names without a dot, such
    as containers have, and those that no public name ends in. A page from elsewhere has neither.
    """

    def __init__(self, app: ASGIApp, *, network: bool) -> None:
        self.app = app
        self._passes = _is_near if network else is_loopback
        self._served = "one's own network" if network else "this machine"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = dict(scope["headers"])
            host, origin = headers.get(b"host"), headers.get(b"origin")
            for name, url in (("Host", host and b"//" + host), ("Origin", origin)):
                if url is not None and not self._passes(_host_of(url.decode("latin-1"))):
                    detail = f"without {ACCEPTED} only {self._served} is served; see the {name}"
                    await refuse(ProblemError(403, "Not local", detail), scope, receive, send)
                    return
        await self.app(scope, receive, send)


def _host_of(url: str) -> str:
    """Empty where there is none, which is nowhere near."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_near(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and ("." not in host or host.endswith(_PRIVATE))
    return True
