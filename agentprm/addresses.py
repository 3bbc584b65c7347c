"""Addresses of services: which are one, by which replica one is reached, by a proxy or not."""

from __future__ import annotations

import random
import socket

import httpx

from agentprm.keys import SENT, is_loopback


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


def service_url(url: str) -> str:
    """`url`, if it is one of a service.

    Raises:
        ValueError: it is none of http or https, or it holds a user's name, which nothing would
            read; the message does not repeat it, as it may hold the password too.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"no URL of a service: {error}") from error
    if parts.userinfo:
        raise ValueError(f"a service's URL holds no user or password; keys come from {SENT}")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"{url!r} is no URL of a service: write http://HOST:PORT")
    return url


def replica_urls(urls: str) -> str:
    """`urls`, if it is the URL of a service, or several of its replicas as a,b,..., or empty.

    Raises:
        ValueError: as `service_url`.
    """
    for url in urls.split(",") if urls else []:
        service_url(url)
    return urls


def by_proxy(url: str) -> bool:
    """Whether the environment's proxies (`HTTP_PROXY`) may stand before `url`; for `trust_env` of
    httpx. They cannot reach this machine's loopback, which httpx would send them all the same.
    """
    return not is_loopback(httpx.URL(url).host)
