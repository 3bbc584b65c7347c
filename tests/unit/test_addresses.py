"""Replicas behind one host name."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from agentprm.addresses import pick


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A resolver that knows these names; a real one with several addresses is not at hand."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host: str, port: int, *_: object) -> list[Any]:
        if host not in known:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_several_addresses_share_the_work(names: dict[str, list[str]]) -> None:
    names["env"] = ["10.0.0.1", "10.0.0.2"]
    assert {pick("http://env:8001") for _ in range(100)} == {
        "http://10.0.0.1:8001",
        "http://10.0.0.2:8001",
    }


def test_one_address_or_none_is_left_to_each_connection(names: dict[str, list[str]]) -> None:
    names["env"] = ["10.0.0.1", "10.0.0.1"]
    for url in ("http://env:8001", "http://gone:8001", "https://env:8001"):
        assert pick(url) == url
