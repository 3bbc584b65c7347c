"""The environment names a proxy: it is for other machines, and not for this one's loopback."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response

from agentprm.addresses import by_proxy
from agentprm.cli.ports import free_port
from agentprm.cli.processes import Machine
from agentprm.client import AsyncPRMClient, PRMClient
from agentprm.models.sglang import SGLangClient
from agentprm.prompts import load_prompt
from agentprm.protocol import Health, Sampling, State
from services.rollout.chat import ChatModel
from tests.fake_services import serving
from tests.fake_sglang import FakeSGLang
from tests.unit.test_machine import LISTENS

HEALTH = Health(service="prm", status="healthy", package_version="0", version="prm/7")


@pytest.fixture(autouse=True)
def _proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nobody reaches."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def answering(paths: list[str]) -> FastAPI:
    """Says that it is well, and what it is asked; a proxy is asked for whole URLs."""
    app = FastAPI()

    @app.middleware("http")
    async def answer(request: Request, _: object) -> Response:
        paths.append(request.headers["host"] + request.url.path)
        chat = '{"choices": [{"message": {"role": "assistant", "content": "look"}}]}'
        body = HEALTH.model_dump_json() if "health" in request.url.path else chat
        return Response(body, media_type="application/json")

    return app


async def awaited(url: str) -> Health:
    async with AsyncPRMClient(url) as prm:
        return await prm.health()


def test_services_on_loopback_are_reached_without_it(tmp_path: Path) -> None:
    with serving(answering([])) as url:
        with PRMClient(url) as prm:
            assert prm.health() == HEALTH
        assert asyncio.run(awaited(url)) == HEALTH
        model = ChatModel(url, load_prompt("chat"))
        [answer] = model.act("m", [State(task="t", observation="o")], Sampling(), 0)
        assert answer is not None
        assert answer.model == "m"
    with serving(FakeSGLang().app()) as url, SGLangClient(url) as server:
        assert server.ready()
    port = free_port()
    with Machine(tmp_path) as machine:
        machine.start_command("prm", [sys.executable, "-c", LISTENS, str(port)], port=port)
        machine.wait_reachable(["prm"], 20)


def test_services_elsewhere_are_reached_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    with serving(answering(asked)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy)
        with PRMClient("http://prm.example") as prm:
            assert prm.health() == HEALTH
        assert asyncio.run(awaited("http://prm.example")) == HEALTH
    assert asked == ["prm.example/health"] * 2


@pytest.mark.parametrize(
    ("url", "by"),
    [
        ("http://127.0.0.1:8003", False),
        ("http://127.1.2.3", False),
        ("http://localhost:8003/v1", False),
        ("http://[::1]:8003", False),
        ("http://prm:8003", True),
        ("https://api.openai.com/v1", True),
        ("http://10.0.0.7:8003", True),
    ],
)
def test_loopback_is_what_no_proxy_reaches(url: str, by: bool) -> None:
    assert by_proxy(url) == by
