"""The client's retries and errors, against a real server in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI, Response

from agentprm.client import PRMClient, ServiceError
from agentprm.protocol import Action, Pair, ScoreRequest, State

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

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
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


def test_it_tries_again_where_that_helps(scripted: Scripted) -> None:
    scripted.statuses = [429, 502, 503, 504]
    with PRMClient(scripted.url, deadline=20) as prm:
        assert prm.score(REQUEST).pairs == [0.5]
    assert scripted.requests == 5


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500])
def test_it_does_not_where_it_cannot(scripted: Scripted, status: int) -> None:
    scripted.statuses = [status]
    with PRMClient(scripted.url, deadline=20) as prm, pytest.raises(ServiceError) as raised:
        prm.score(REQUEST)
    assert raised.value.status == status
    assert "Sorry. why" in str(raised.value)
    assert scripted.requests == 1


def test_it_gives_up_at_the_deadline(scripted: Scripted) -> None:
    scripted.statuses = [503] * 1000
    with PRMClient(scripted.url, deadline=1.0) as prm, pytest.raises(ServiceError) as raised:
        prm.score(REQUEST)
    assert raised.value.status == 503


def test_nobody_there_is_a_service_error() -> None:
    with (
        PRMClient("http://127.0.0.1:9", deadline=0.5) as prm,
        pytest.raises(ServiceError) as raised,
    ):
        prm.score(REQUEST)
    assert raised.value.status is None
