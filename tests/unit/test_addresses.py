"""Replicas behind one host name."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from agentprm.addresses import pick, replica_urls, service_url
from agentprm.client import AsyncPRMClient, PRMClient


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


def test_a_service_has_a_scheme_and_no_password() -> None:
    for url in ("http://127.0.0.1:8003", "https://prm.our.example/prefix", "http://[::1]:8003"):
        assert service_url(url) == url
    for url in ("127.0.0.1:8003", "prm:8003", "ftp://prm", "http://", ""):
        with pytest.raises(ValueError, match="write http://HOST:PORT"):
            service_url(url)
    for urls in ("", "http://a:1", "http://a:1,http://b:2"):
        assert replica_urls(urls) == urls
    for urls in ("http://a:1,", "http://a:1,b:2"):
        with pytest.raises(ValueError, match="write http://HOST:PORT"):
            replica_urls(urls)
    for client in (PRMClient, AsyncPRMClient):
        with pytest.raises(ValueError, match="AGENTPRM_API_KEY") as refused:
            client("http://me:hunter2@prm:8003")
        assert "hunter2" not in str(refused.value)
