"""How an address is reached: by which replica of a scaled service, and by a proxy or not."""

from __future__ import annotations

import random
import socket

import httpx

from agentprm.keys import is_loopback


def pick(url: str) -> str:
    """`url` with one of its host's IPv4 addresses, drawn at random, where the host has several.

    For what has to stay with one replica, such as the sessions of an environment. A host of one
    address, or none now, is left to be resolved at each connection; so is https, whose
    certificates are for names.
    """
    parts = httpx.URL(url)
    if parts.scheme != "http":
        return url
    try:
        found = socket.getaddrinfo(parts.host, parts.port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return url
    addresses = sorted({str(address[0]) for *_, address in found})
    return str(parts.copy_with(host=random.choice(addresses))) if len(addresses) > 1 else url


def by_proxy(url: str) -> bool:
    """Whether the environment's proxies (`HTTP_PROXY`) may stand before `url`; for `trust_env` of
    httpx. They cannot reach this machine's loopback, which httpx would send them all the same.
    """
    return not is_loopback(httpx.URL(url).host)
