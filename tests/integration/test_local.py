"""What serves this machine without keys, and the web pages that its browser has open."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from fastapi import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from agentprm.cli.ports import free_port
from agentprm.keys import ACCEPTED
from agentprm.protocol import Health
from agentprm.service import create_app, serve

KEY = "0123456789abcdef"


def _listen(host: str, port: int) -> None:
    app = create_app("test", lambda: Health(service="test", status="healthy", package_version="1"))

    @app.post("/work")
    async def _work() -> str:
        return "done"

    @app.websocket("/ws")
    async def _ws(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    serve(app, host, port)


@contextmanager
def service(host: str) -> Iterator[int]:
    """The port at which it listens."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_listen, args=(host, port))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                assert process.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ACCEPTED, raising=False)
        with service("127.0.0.1") as port:
            yield port


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "127.0.0.2"])
def test_this_machine_is_served_by_all_its_names(port: int, host: str) -> None:
    headers = {"host": f"{host}:{port}", "origin": f"http://{host}:3000"}
    assert httpx.post(f"http://127.0.0.1:{port}/work", headers=headers).status_code == 200
    assert httpx.get(f"http://127.0.0.1:{port}/health", headers={"host": host}).is_success


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8001"},
        {"host": "[::1"},
        {"host": ""},
        {"origin": "https://evil.example", "content-type": "text/plain"},
        {"origin": "null"},
    ],
)
def test_a_web_page_of_another_is_not(port: int, headers: dict[str, str]) -> None:
    for answer in (
        httpx.post(f"http://127.0.0.1:{port}/work", headers=headers),
        httpx.get(f"http://127.0.0.1:{port}/health", headers=headers),
    ):
        assert (answer.status_code, answer.json()["title"]) == (403, "Not local")


def test_nor_by_a_websocket(port: int) -> None:
    url = f"ws://127.0.0.1:{port}/ws"
    with connect(url), connect(url, origin=Origin("http://localhost:3000")):
        pass
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(url, origin=Origin("https://evil.example")),
    ):
        pass


@pytest.fixture(scope="module")
def network() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ACCEPTED, raising=False)
        with service("0.0.0.0") as port:
            yield port


@pytest.mark.parametrize(
    "host", ["policy:8002", "192.168.1.7:8002", "[fd00::7]", "prm.ours.svc.cluster.local"]
)
def test_containers_and_machines_nearby_are_served_by_their_names(network: int, host: str) -> None:
    headers = {"host": host, "origin": "http://127.0.0.1:3000"}
    assert httpx.post(f"http://127.0.0.1:{network}/work", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["http://policy", "http://192.168.1.7", "http://[fe80::1]", "http://[::ffff:10.0.0.1]:3000"],
)
def test_pages_of_the_network_are_served(network: int, origin: str) -> None:
    headers = {"host": "prm:8003", "origin": origin}
    assert httpx.post(f"http://127.0.0.1:{network}/work", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["203.0.113.5", "[2001:db8::5]"])
def test_a_public_address_serves_its_own_pages(network: int, host: str) -> None:
    headers = {"host": f"{host}:8003", "origin": f"http://{host}"}
    assert httpx.post(f"http://127.0.0.1:{network}/work", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "prm:8003", "origin": "https://evil.example"},
        {"host": "prm:8003", "origin": "null"},
        {"host": "192.168.1.7:8003", "origin": "http://203.0.113.5"},
        {"host": "192.168.1.7:8003", "origin": "http://8.8.8.8:8003"},
        {"host": "192.168.1.7:8003", "origin": "http://[::ffff:cb00:7105]"},
        {"host": "[fd00::7]:8003", "origin": "http://[2001:db8::5]"},
    ],
)
def test_without_keys_a_web_page_is_not_served_for_the_network_either(
    network: int, headers: dict[str, str]
) -> None:
    answer = httpx.post(f"http://127.0.0.1:{network}/work", headers=headers)
    assert (answer.status_code, answer.json()["title"]) == (403, "Not local")


def test_with_keys_names_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key no page knows."""
    headers = {"host": "policy.our.example", "origin": "https://our.example"}
    monkeypatch.setenv(ACCEPTED, f"admin:{KEY}")
    with service("127.0.0.1") as port:
        headers["authorization"] = f"Bearer {KEY}"
        assert httpx.post(f"http://127.0.0.1:{port}/work", headers=headers).status_code == 200
