"""One id in the logs of every service that has a part in a request."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

from agentprm import request_id
from agentprm.client import PolicyClient
from agentprm.protocol import ActRequest
from tests.env_server import EnvServer, write_kitchen
from tests.integration.conftest import READ, Guarded
from tests.integration.test_auth import ACT


def routes(guarded: Guarded, service: str, name: str) -> list[tuple[str, int]]:
    """What a service has logged of a request: that comes a moment after its answer."""
    deadline = time.monotonic() + 20
    while True:
        lines = [line for line in guarded.lines(service) if line.get("request_id") == name]
        assert {line["service"] for line in lines} <= {service}
        found = [(line["route"], line["status"]) for line in lines if line["event"] == "request"]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_an_act_is_found_in_both_logs(guarded: Guarded) -> None:
    headers = {"X-Request-ID": "acting-1"}
    answer = guarded.call("policy", "POST", "/v1/act", READ, json=ACT, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "acting-1"
    assert routes(guarded, "policy", "acting-1") == [("/v1/act", 200)]
    assert routes(guarded, "prm", "acting-1") == [("/v1/score", 200)]


def test_acts_at_the_same_time_keep_their_ids_apart(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTPRM_API_KEY", READ)
    request = ActRequest.model_validate(ACT)

    def act(name: str) -> None:
        with request_id.named(name), PolicyClient(guarded.urls["policy"]) as policy:
            policy.act(request)

    names = [f"apart-{k}" for k in range(8)]
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(act, names))
    for name in names:
        assert routes(guarded, "policy", name) == [("/v1/act", 200)]
        assert routes(guarded, "prm", name) == [("/v1/score", 200)]


@pytest.mark.parametrize("requests", [True, False])
def test_requests_that_were_answered_need_no_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], requests: bool
) -> None:
    write_kitchen(tmp_path)
    server = EnvServer("--data", str(tmp_path), "--log-requests", str(requests).lower())
    try:
        assert httpx.get(f"{server.url}/v1/games").status_code == 200
        assert httpx.get(f"{server.url}/v1/nothing").status_code == 404
    finally:
        server.stop()
    lines = [orjson.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    statuses = [line["status"] for line in lines if line["event"] == "request"]
    assert statuses == ([200, 404] if requests else [404])
