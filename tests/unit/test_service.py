"""What all services share, on a real server with small limits."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, Response, WebSocket
from pydantic import BaseModel
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agentprm import request_id
from agentprm.calls import get
from agentprm.client import EnvClient, ServiceError
from agentprm.protocol import Health, Text
from agentprm.service import Limits, ProblemError, _observe, _server, create_app

LIMITS = Limits(
    body=1000,
    bodies=1500,
    body_seconds=2.0,
    requests=3,
    sockets=1,
    seconds=1.0,
    slower={"/patient": 30.0},
)


class Item(BaseModel):
    name: Text
    values: list[int] = []


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_server, "HEADER_SECONDS", 1.0)
        patch.setattr(_server, "CONNECTIONS", 20)
        with running(app()) as url:
            yield url


def app() -> FastAPI:
    health = Health(service="test", status="healthy", package_version="1", version="test/7")
    app = create_app("test", lambda: health, limits=LIMITS)

    @app.post("/items")
    async def items(item: Item) -> str:
        return item.name

    router = APIRouter()
    app.include_router(router)

    @router.post("/routed")
    async def routed(item: Item) -> str:
        return item.name

    @app.get("/sleep")
    async def sleep(seconds: float) -> str | None:
        await asyncio.sleep(seconds)
        return request_id.current()

    @app.get("/patient")
    async def patient(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "there"

    @app.get("/raise")
    async def fail(kind: str) -> Response:
        if kind == "timeout":
            raise TimeoutError
        if kind == "problem":
            raise ProblemError(429, "Too many", "really \ud800", retry_after=7)
        raise RuntimeError("a secret of the service")

    @app.websocket("/socket")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    return app


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        config = uvicorn.Config(app, http=_server.Http, log_level="critical", ws_max_size=1000)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def raw(url: str) -> socket.socket:
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 0), timeout=10)


def problem(answer: httpx.Response, status: int, title: str) -> dict[str, object]:
    assert (answer.status_code, answer.json()["title"]) == (status, title)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"].endswith(answer.headers["x-request-id"])
    return dict(answer.json())


# --- problems ------------------------------------------------------------------------------------


def test_a_problem_names_the_fields(server: str) -> None:
    answer = httpx.post(f"{server}/items", json={"values": [1, "two", 3, "four"]})
    found = problem(answer, 422, "Invalid request")
    assert found["errors"] == [
        {"loc": ["body", "name"], "msg": "Field required"},
        *(
            {
                "loc": ["body", "values", k],
                "msg": "Input should be a valid integer, unable to parse string as an integer",
            }
            for k in (1, 3)
        ),
    ]
    assert found["detail"] == "body.name: Field required"
    assert found["type"] == "urn:agentprm:problem:invalid-request"


def test_a_body_that_is_no_json_is_told_with_the_place(server: str) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server}/items", content=b'{"name": "a" 1}', headers=headers)
    detail = problem(answer, 422, "Invalid request")["detail"]
    assert detail == "body: no JSON: Expecting ',' delimiter at character 13"


def test_a_body_that_cannot_be_read_says_why_it_may_be(server: str) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server}/items", content=b'{"name": "\xff"}', headers=headers)
    detail = problem(answer, 400, "There was an error parsing the body")["detail"]
    assert "no JSON in UTF-8" in str(detail)


def test_a_body_of_another_type_is_told_which_to_send(server: str) -> None:
    """As curl sends it that is not told otherwise."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = httpx.post(f"{server}/items", content=b'{"name": "a"}', headers=headers)
    detail = problem(answer, 422, "Invalid request")["detail"]
    assert str(detail).startswith(
        "send the body as content-type: application/json, not application/x-w"
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": [',
        b"\xff\xfe",
        b"[" * 900,
        b'{"name":' * 100 + b"1" + b"}" * 100,
        json.dumps({"name": "\ud800"}).encode(),
        b'{"name": "a", "values": [' + b"1e999," * 50 + b"1]}",
    ],
)
def test_malformed_bodies_are_problems(server: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server}/items", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 4000


def test_a_bug_is_a_problem_that_tells_nothing(server: str) -> None:
    for kind in ("bug", "timeout"):
        # Where no service has set logging up, the traceback of a bug takes seconds to draw.
        answer = httpx.get(f"{server}/raise", params={"kind": kind}, timeout=60)
        problem(answer, 500, "Internal error")
        assert "secret" not in answer.text
    answer = httpx.get(f"{server}/raise", params={"kind": "problem"})
    assert problem(answer, 429, "Too many")["detail"] == "really ?"
    assert answer.headers["retry-after"] == "7"
    there = "this is the test service; it has no {}; /docs lists what it has"
    nowhere = problem(httpx.get(f"{server}/nowhere"), 404, "Not Found")
    assert nowhere["detail"] == there.format("GET /nowhere")
    for path in ("/items", "/routed"):
        wrong = httpx.delete(f"{server}{path}")
        found = problem(wrong, 405, "Method Not Allowed")
        assert found["detail"] == there.format(f"DELETE {path}")
        assert wrong.headers["allow"] == "POST"


# --- limits --------------------------------------------------------------------------------------


def test_headers_without_end_are_cut_off(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server, "HEADER_SECONDS", 60.0)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        closed = b"?"
        with contextlib.suppress(ConnectionError):
            line.sendall(b"GET /items HTTP/1.1\r\nHost: x\r\nX: " + b"x" * _server.HEADER_BYTES)
            closed = line.recv(1)
        assert closed in (b"", b"?")


def test_large_bodies_are_refused_announced_or_not(server: str) -> None:
    problem(httpx.post(f"{server}/items", content=b"x" * 1001), 413, "Body too large")
    problem(httpx.post(f"{server}/items", content=iter([b"x" * 600] * 2)), 413, "Body too large")
    with raw(server) as client:
        client.sendall(b"POST /items HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n")
        assert b" 413 " in client.recv(100)


def left(server: str) -> float:
    """Requests whose clients left before they were answered."""
    lines = httpx.get(f"{server}/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("agentprm_http_requests_total")]
    return sum(float(line.split()[-1]) for line in counted if 'status="499"' in line)


def test_a_body_that_does_not_come_is_given_up(server: str) -> None:
    with raw(server) as client:
        client.sendall(b"POST /items HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        started = time.monotonic()
        assert b" 408 " in client.recv(100)
        assert 1.0 < time.monotonic() - started < 9
    before = left(server)
    with raw(server) as client:
        client.sendall(b"POST /items HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    assert httpx.post(f"{server}/items", json={"name": "next"}).json() == "next"
    deadline = time.monotonic() + 10
    while left(server) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left(server) == before + 1


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nX-Slow: "])
def test_headers_that_do_not_come_close_the_connection(server: str, sent: bytes) -> None:
    with raw(server) as client:
        started = time.monotonic()
        client.sendall(sent)
        client.settimeout(0.4)
        got = None
        while got is None:
            try:
                got = client.recv(100)
            except TimeoutError:
                assert time.monotonic() - started < 8
                if sent:
                    client.sendall(b"x")  # a byte now and then changes nothing
        assert got == b""


def test_a_slow_but_honest_connection_is_kept(server: str) -> None:
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.connect()
        connection.auto_open = 0  # one that is closed is not opened again
        for _ in range(2):
            connection.request("GET", "/patient?seconds=1.2")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b'"there"')
            time.sleep(1.2)  # longer than headers may take, but nothing has been begun


def test_connections_beyond_the_bound_are_closed(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "HEADER_SECONDS", 60.0)  # else all of them are closed for silence
    held = [raw(server) for _ in range(_server.CONNECTIONS + 5)]
    try:
        closed: set[int] = set()
        deadline = time.monotonic() + 20
        while len(closed) < 5 and time.monotonic() < deadline:
            waiting = [client for client in held if client.fileno() not in closed]
            ended, _, _ = select.select(waiting, [], [], 0.1)
            closed |= {client.fileno() for client in ended if client.recv(1) == b""}
        assert 5 <= len(closed) < 10
    finally:
        for client in held:
            client.close()


def test_requests_beyond_the_bound_are_told_to_come_back(server: str) -> None:
    with ThreadPoolExecutor(3) as clients:
        held = [clients.submit(httpx.get, f"{server}/patient?seconds=3") for _ in range(3)]
        time.sleep(1.0)
        refused = httpx.get(f"{server}/sleep?seconds=0")
        problem(refused, 503, "Overloaded")
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(f"{server}/health").status_code == 200
        assert 'in_flight{service="test"} 3.0' in httpx.get(f"{server}/metrics").text
        assert [call.result().status_code for call in held] == [200] * 3
    assert httpx.get(f"{server}/sleep?seconds=0").status_code == 200
    assert 'in_flight{service="test"} 0.0' in httpx.get(f"{server}/metrics").text


def test_all_bodies_together_are_bounded(server: str) -> None:
    with raw(server) as one, raw(server) as two:
        for client in (one, two):
            head = b"POST /items HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            client.sendall(head + b" " * 900)
            time.sleep(0.2)
        assert b" 503 " in two.recv(100)
    assert httpx.post(f"{server}/items", json={"name": "next"}).json() == "next"


def test_a_request_is_given_up_when_its_time_is_over(server: str) -> None:
    answer = httpx.get(f"{server}/sleep?seconds=30")
    problem(answer, 503, "Not in time")
    assert answer.headers["retry-after"] == "5"
    assert httpx.get(f"{server}/patient?seconds=1.5").json() == "there"


def test_sockets_are_bounded(server: str) -> None:
    url = server.replace("http", "ws") + "/socket"
    with connect(url, proxy=None) as first:
        assert first.response is not None
        assert first.response.headers["x-request-id"]
        with pytest.raises(InvalidStatus) as refused:
            connect(url, proxy=None)
        assert refused.value.response.status_code == 503
        first.send("hello")
        assert first.recv() == "hello"
    time.sleep(0.2)
    with connect(url, proxy=None):
        pass


# --- what is told of requests --------------------------------------------------------------------


def test_ids_are_taken_made_and_passed_on(server: str) -> None:
    given = {"X-Request-ID": "rollout-1/7:a_b.c"}
    answer = httpx.get(f"{server}/sleep?seconds=0", headers=given)
    assert answer.json() == answer.headers["x-request-id"] == given["X-Request-ID"]
    for bad in (b"", b"a b", b"x" * 129, b"\xff"):
        answer = httpx.get(f"{server}/sleep?seconds=0", headers={b"X-Request-ID": bad})
        assert answer.headers["x-request-id"].encode() not in (b"", bad)
    with request_id.named("job-12"), EnvClient(server) as client:
        assert client._http.get("/sleep?seconds=0").json() == "job-12"
    assert request_id.current() is None


def test_an_error_says_which_request_it_was(server: str) -> None:
    with request_id.named("job-13"), EnvClient(server) as client, pytest.raises(ServiceError):
        client._do(get("/raise", Health, {"kind": "bug"}))
    answer = httpx.get(f"{server}/raise?kind=bug", timeout=60)
    assert answer.headers["x-request-id"]


def test_requests_are_logged_but_not_all_of_a_flood(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_observe, "LINES_PER_SECOND", 0.0)
    monkeypatch.setattr(_observe, "BURST", 3)
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            httpx.get(f"{server}/sleep?seconds=0")
            httpx.get(f"{server}/health")
        monkeypatch.setattr(_observe, "LINES_PER_SECOND", 1e9)
        httpx.get(f"{server}/nowhere")
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["route"] for line in requests] == ["/sleep"] * 3 + ["unmatched"]
    assert requests[0]["method"] == "GET"
    assert requests[0]["status"] == 200
    assert (requests[3]["left_out"], requests[3]["path"]) == (2, "/nowhere")


def test_metrics_say_what_serves_and_what_was_refused(server: str) -> None:
    httpx.post(f"{server}/items", content=b"x" * 1001)
    metrics = httpx.get(f"{server}/metrics").text
    assert 'agentprm_serving_info{package="1",service="test",version="test/7"} 1.0' in metrics
    assert 'agentprm_http_problems_total{problem="body-too-large",service="test"}' in metrics
    assert 'agentprm_http_request_seconds_count{route="/items",service="test"}' in metrics
