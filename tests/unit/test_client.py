"""The clients' retries and errors, against a real server in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
import tenacity
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from agentprm.calls import _Attempts
from agentprm.cli.ports import free_port
from agentprm.client import AsyncEnvClient, AsyncPRMClient, EnvClient, PRMClient, ServiceError
from agentprm.protocol import Action, Pair, ScoreRequest, ScoreResponse, Split, State

ANSWER = (
    '{"pairs": [0.5], "choices": [], "transcripts": [], "prm_version": "prm/0",'
    ' "template_hash": "0"}'
)
REQUEST = ScoreRequest(
    pairs=[Pair(state=State(task="t", observation="o"), action=Action(command="look"))]
)


class Scripted:
    """Answers with the statuses of a list, then with 200; counts the requests."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.requests = 0
        app = FastAPI()

        @app.post("/v1/score")
        def score() -> Response:
            self.requests += 1
            status = self.statuses.pop(0) if self.statuses else 200
            body = ANSWER if status == 200 else '{"title": "Sorry", "status": 0, "detail": "why"}'
            headers = {"Retry-After": "0"} if status == 429 else {}
            return Response(body, status, headers, media_type="application/json")

        @app.get("/v1/games")
        def games(split: str, limit: int) -> dict[str, object]:
            assert split == "train"
            return {"games": [], "total": limit}

        @app.get("/v1/model")
        @app.get("/of-another/health")
        def page() -> Response:
            return Response("<html>It works!</html>", media_type="text/html")

        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(app, port=port, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.server.should_exit = True
    server.thread.join()


Score = Callable[[str, float], ScoreResponse]


def at_once(url: str, deadline: float) -> ScoreResponse:
    with PRMClient(url, deadline=deadline) as prm:
        return prm.score(REQUEST)


def awaited(url: str, deadline: float) -> ScoreResponse:
    async def ask() -> ScoreResponse:
        async with AsyncPRMClient(url, deadline=deadline) as prm:
            return await prm.score(REQUEST)

    return asyncio.run(ask())


@pytest.fixture(params=[at_once, awaited])
def score(request: pytest.FixtureRequest) -> Score:
    found: Score = request.param
    return found


def test_it_tries_again_where_that_helps(scripted: Scripted, score: Score) -> None:
    scripted.statuses = [429, 502, 503, 504]
    assert score(scripted.url, 20).pairs == [0.5]
    assert scripted.requests == 5


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500])
def test_it_does_not_where_it_cannot(scripted: Scripted, score: Score, status: int) -> None:
    scripted.statuses = [status]
    with pytest.raises(ServiceError) as raised:
        score(scripted.url, 20)
    assert raised.value.status == status
    assert "Sorry. why" in str(raised.value)
    assert scripted.requests == 1


def test_it_gives_up_at_the_deadline(scripted: Scripted, score: Score) -> None:
    scripted.statuses = [503] * 1000
    with pytest.raises(ServiceError) as raised:
        score(scripted.url, 1)
    assert raised.value.status == 503


def test_nobody_there_is_a_service_error(score: Score) -> None:
    with pytest.raises(ServiceError) as raised:
        score("http://127.0.0.1:9", 0.5)
    assert raised.value.status is None


def test_an_attempt_does_not_outlast_the_deadline(score: Score) -> None:
    with socket.socket() as silent:  # accepts and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(ServiceError):
            score(f"http://127.0.0.1:{silent.getsockname()[1]}", 1.0)
        assert 0.9 < time.monotonic() - started < 9


def test_an_answer_that_trickles_does_not_outlast_the_deadline(score: Score) -> None:
    ended = threading.Event()

    def trickle(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            while not ended.wait(0.2):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=trickle, args=(listening,))
        thread.start()
        started = time.monotonic()
        try:
            with pytest.raises(ServiceError, match="too slowly"):
                score(f"http://127.0.0.1:{listening.getsockname()[1]}", 1.0)
            assert 0.9 < time.monotonic() - started < 9
        finally:
            ended.set()
            thread.join()


def health_at_once(url: str) -> None:
    with PRMClient(url) as prm:
        prm.health()


def health_awaited(url: str) -> None:
    async def ask() -> None:
        async with AsyncPRMClient(url) as prm:
            await prm.health()

    asyncio.run(ask())


@pytest.mark.parametrize("health", [health_at_once, health_awaited])
def test_a_health_that_cannot_be_had_is_a_service_error_and_soon(
    scripted: Scripted, health: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens; nobody answers; what answers is no service of ours."""
    monkeypatch.setattr("agentprm.calls.HEALTH_SECONDS", 0.3)
    with pytest.raises(ServiceError, match="cannot be reached"):
        health("http://127.0.0.1:9")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(ServiceError):
            health(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 9
    with pytest.raises(ServiceError) as raised:
        health(scripted.url)
    assert raised.value.status == 404
    with pytest.raises(ServiceError, match="cannot be read"):
        health(f"{scripted.url}/of-another")


def test_an_answer_that_cannot_be_read_is_a_service_error(scripted: Scripted) -> None:
    with PRMClient(scripted.url, deadline=5) as prm, pytest.raises(ServiceError, match="read"):
        prm.model()


def test_a_text_in_place_of_several_is_refused() -> None:
    """It would be scored letter by letter."""
    with PRMClient("http://127.0.0.1:9", deadline=0.3) as prm:
        with pytest.raises(ValueError, match=r"give a list, as \['look'\]"):
            prm.score_answers([{"role": "user", "content": "Which door?"}], "look")
        with pytest.raises(ValueError, match=r"give a list, as \['look'\]"):
            prm.score_actions(State(task="t", observation="o"), "look")


class HumanMessage(BaseModel):
    """As LangChain's: they have no role."""

    content: str
    type: str = "human"


def test_message_objects_without_a_role_are_refused() -> None:
    with (
        PRMClient("http://127.0.0.1:9", deadline=0.3) as prm,
        pytest.raises(ValueError, match=r"HumanMessage has no role: .*convert_to_openai_messages"),
    ):
        prm.score_messages([HumanMessage(content="Which door?")])


def test_every_call_has_an_async_twin(scripted: Scripted) -> None:
    """One description: the same names, the same answer, once awaited."""
    calls = {name for name in vars(EnvClient.__mro__[1]) if not name.startswith("_")}
    assert calls == {"games", "create", "fork", "step", "experts", "close_sessions", "hidden"}
    assert AsyncEnvClient.__mro__[1] is EnvClient.__mro__[1]
    assert PRMClient.score_messages.__doc__ == AsyncPRMClient.score_messages.__doc__

    async def games() -> int:
        async with AsyncEnvClient(scripted.url, deadline=5) as env:
            return (await env.games(Split.TRAIN, limit=3)).total

    with EnvClient(scripted.url, deadline=5) as env:
        assert env.games(Split.TRAIN, limit=3).total == asyncio.run(games()) == 3


def test_a_service_that_answered_has_as_long_to_come_back_as_any() -> None:
    """It was busy for longer than one that refuses connections is waited for, and then restarts."""
    attempts = _Attempts(deadline=30.0, unreachable=1.0)
    outcomes: list[Exception | str] = [
        ServiceError(429, "busy", retry_after=1.2),
        httpx.ConnectError("refused"),
        httpx.ConnectError("refused"),
        "answer",
    ]

    def once() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert tenacity.Retrying(**attempts.policy)(once) == "answer"
    started = time.monotonic()
    attempts = _Attempts(deadline=30.0, unreachable=0.5)
    outcomes[:] = [httpx.ConnectError("refused") for _ in range(100)]
    with pytest.raises(httpx.ConnectError):
        tenacity.Retrying(**attempts.policy)(once)
    assert len(outcomes) > 90
    assert time.monotonic() - started < 10


def test_a_service_that_asks_for_no_wait_is_not_asked_without_one() -> None:
    """Some gateways send `Retry-After: 0` whatever is the matter."""
    attempts = _Attempts(deadline=1.5, unreachable=None)
    asked = 0

    def once() -> None:
        nonlocal asked
        asked += 1
        raise ServiceError(503, "busy", retry_after=0.0)

    with pytest.raises(ServiceError):
        tenacity.Retrying(**attempts.policy)(once)
    assert 2 <= asked < 10
