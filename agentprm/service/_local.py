"""No web page uses what is served without keys.

A browser takes pages from anywhere and runs them here: one may send requests to other addresses of
its choice, and by a name of its own that resolves to 127.0.0.1 also read the answers. The browser
says by `Host` what it calls, and by `Origin` where the page is from.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from agentprm.keys import ACCEPTED, is_loopback
from agentprm.service._problems import ProblemError, refuse

_NAMES = (".internal", ".local", ".localhost")
"""What names end in that public name servers do not know (RFC 6761, RFC 6762, ICANN 2024)."""
_NETWORKS = [
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
]
"""Addresses of one's own network (RFC 1918, RFC 4193), beside loopback and link-local ones."""


class Local:
    """Refuses requests and WebSockets to a name of another machine, or from a page of one.

    With `network` those of one's own network are let through: names without a dot, such as
    containers have, those that no public name ends in, and addresses. Any address may be called, as
    none is a stranger's name for this machine; but a stranger's page may come from any public one,
    so pages are let through from private ones alone, and from the very host that is called.
    """

    def __init__(self, app: ASGIApp, *, network: bool) -> None:
        self.app = app
        self._may_be_called = _is_no_public_name if network else is_loopback
        self._may_have_pages = _is_near if network else is_loopback
        self._served = "one's own network" if network else "this machine"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            name = self._foreign(dict(scope["headers"]))
            if name is not None:
                detail = f"without {ACCEPTED} only {self._served} is served; see the {name}"
                await refuse(ProblemError(403, "Not local", detail), scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _foreign(self, headers: dict[bytes, bytes]) -> str | None:
        """The header that names another machine, if one does."""
        host, origin = headers.get(b"host"), headers.get(b"origin")
        called = None if host is None else _host_of(b"//" + host)
        if called is not None and not self._may_be_called(called):
            return "Host"
        if origin is None:
            return None
        page = _host_of(origin)
        return None if page == called or self._may_have_pages(page) else "Origin"


def _host_of(url: bytes) -> str:
    """Empty where there is none, which is nowhere near."""
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # a browser takes ::ffff:203.0.113.5 for 203.0.113.5
    return getattr(address, "ipv4_mapped", None) or address


def _is_no_public_name(host: str) -> bool:
    return _address(host) is not None or _is_near(host)


def _is_near(host: str) -> bool:
    address = _address(host)
    if address is None:
        return bool(host) and ("." not in host or host.endswith(_NAMES))
    own = any(address in network for network in _NETWORKS)
    return own or address.is_loopback or address.is_link_local
