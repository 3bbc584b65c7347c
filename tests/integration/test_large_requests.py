"""Requests within the limit on bodies that are wrong in millions of places."""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from agentprm import protocol
from agentprm.cli.ports import free_port
from agentprm.protocol import ActRequest, CreateSessions, Health, ScoreRequest
from agentprm.service import create_app, serve
from agentprm.validation import first_error
from services.env.openenv.episode import Play
from services.policy.chat_request import ChatRequest
from services.prm.facades.openrlhf import RewardRequest
from services.prm.facades.rerank import RerankRequest

JSON = {"content-type": "application/json"}
SIZE = 4 * 2**20
"""Bytes of a body."""
SECONDS = 15.0
"""Longest that one of them may hold a service up. Unbounded it takes minutes, and gigabytes."""
MEMORY = 600 * 2**20
"""Most bytes that a service may take for one of them."""


def _listen(port: int) -> None:
    app = create_app("test", lambda: Health(service="test", status="healthy", package_version="1"))

    @app.post("/act")
    async def _act(request: ActRequest) -> None: ...

    @app.post("/sessions")
    async def _sessions(request: CreateSessions) -> None: ...

    @app.post("/chat")
    async def _chat(http: Request) -> Response:
        try:
            ChatRequest.model_validate_json(await http.body())
        except ValidationError as error:
            return Response(first_error(error), 400)
        return Response()

    serve(app, "127.0.0.1", port)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[int, str]]:
    """The process and its address."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_listen, args=(port,))
    process.start()
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                assert process.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield process.pid or 0, url
    finally:
        process.kill()
        process.join()


def _many(element: str, before: str, after: str) -> bytes:
    return f"{before}[{','.join([element] * (SIZE // (len(element) + 1)))}]{after}".encode()


KEYS = ("{" + ",".join(f'"{k:x}":1' for k in range(SIZE // 10)) + "}").encode()
STATE = '{"task":"t","observation":"o"}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", _many("0", '{"model":"policy","messages":[{"role":"user","content":', "}]}")),
        ("/chat", _many("0", '{"model":"policy","messages":', "}")),
        ("/act", _many("0", f'{{"states":[{STATE}],"hints":', "}")),
        ("/act", _many("{}", '{"states":', "}")),
        ("/act", b'{"states":[' + KEYS + b"]}"),
        ("/sessions", KEYS),
        ("/sessions", _many("[0]", '{"games":["a"],"prefixes":', "}")),
    ],
    ids=["parts", "messages", "hints", "states", "keys of a state", "keys", "prefixes"],
)
def test_a_body_that_is_wrong_everywhere_is_refused_at_once(
    service: tuple[int, str], path: str, body: bytes
) -> None:
    pid, url = service
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before = _peak(pid)
    waits: list[float] = []
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            started = time.monotonic()
            httpx.get(f"{url}/health", timeout=60)
            waits.append(time.monotonic() - started)
            time.sleep(0.02)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        started = time.monotonic()
        answer = httpx.post(f"{url}{path}", content=body, headers=JSON, timeout=60)
        seconds = time.monotonic() - started
    finally:
        done.set()
        thread.join()
    assert answer.status_code in (400, 422), answer.text[:200]
    assert seconds < SECONDS
    assert max(waits) < SECONDS
    assert _peak(pid) - before < MEMORY


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def _requests() -> list[type[BaseModel]]:
    exported = [getattr(protocol, name) for name in protocol.__all__]
    ours = [
        kind
        for kind in exported
        if isinstance(kind, type) and issubclass(kind, protocol.Request) and kind.model_fields
    ]
    return [*ours, Play, ChatRequest, RewardRequest, RerankRequest]


@pytest.mark.parametrize("kind", _requests(), ids=lambda kind: kind.__name__)
def test_every_list_of_a_request_ends_at_its_first_error(kind: type[BaseModel]) -> None:
    def lists(schema: Any) -> Iterator[dict[str, Any]]:
        if isinstance(schema, dict):
            if schema.get("type") in ("list", "tuple", "set"):
                yield schema
            for value in schema.values():
                yield from lists(value)
        elif isinstance(schema, list):
            for value in schema:
                yield from lists(value)

    for found in lists(kind.__pydantic_core_schema__):
        items = found.get("items_schema")
        assert found.get("fail_fast") or items is None or items == {"type": "any"}


def test_the_errors_of_a_request_are_few() -> None:
    many = [{"role": "user", "content": [0] * 1000} for _ in range(500)]
    with pytest.raises(ValidationError) as caught:
        ScoreRequest.model_validate({"conversations": [{"messages": many}] * 256})
    assert caught.value.error_count() < 10
