"""Keys and scopes, on services that run as processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agentprm.client import PRMClient, ServiceError
from tests.env_server import KITCHEN, write_kitchen
from tests.integration.conftest import ADMIN, POLICY_TO_PRM, READ, Guarded

STATE = {"task": "put some mug", "observation": "You see a mug 1.", "admissible": ["look", "go"]}
ACT = {"states": [STATE], "n": 2, "prm": True, "sampling": {"max_tokens": 8}}
CHAT = {"model": "policy", "messages": [{"role": "user", "content": "You see a mug 1."}]}


@pytest.mark.parametrize(
    "given",
    [None, "Bearer unknown-key-0123456789", "Bearer", "Bearer " + "é" * 999, f"Basic {ADMIN}"],
)
@pytest.mark.parametrize(
    ("service", "method", "path"),
    [
        ("env", "GET", "/v1/games"),
        ("env", "POST", "/mcp"),
        ("env", "POST", "/reset"),
        ("env", "GET", "/nowhere"),
        ("policy", "POST", "/v1/act"),
        ("prm", "POST", "/v1/score"),
        ("prm", "POST", "/v1/checkpoints/load"),
        ("prm", "GET", "/metrics"),
    ],
)
def test_without_a_valid_key_nothing_is_told(
    guarded: Guarded, service: str, method: str, path: str, given: str | None
) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    answer = guarded.call(service, method, path, None, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:agentprm:problem:no-valid-key"
    assert answer.json()["instance"] == f"urn:agentprm:request:{answer.headers['x-request-id']}"


def test_openai_clients_get_their_own_shape(guarded: Guarded) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
        answer = guarded.call("policy", method, path, None, json=CHAT)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["message"].startswith("send `Authorization")
    answer = guarded.call("policy", "POST", "/v1/chat/completions", READ, json=CHAT)
    assert answer.json()["choices"][0]["message"]["role"] == "assistant"
    assert guarded.call("policy", "GET", "/v1/chat/completions", READ).json()["error"]


def test_health_is_open_and_tells_strangers_no_details(guarded: Guarded) -> None:
    for service in guarded.urls:
        stranger = guarded.call(service, "GET", "/health", None).json()
        assert (stranger["status"], stranger["details"]) == ("healthy", {})
        assert guarded.call(service, "GET", "/health", READ).json()["details"]
        schema = guarded.call(service, "GET", "/openapi.json", None).json()
        assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        assert "security" not in schema["paths"]["/health"]["get"]
        assert schema["paths"]["/metrics"]["get"]["security"] == [{"key": []}]


def test_a_read_key_reads_and_an_admin_key_does_all(guarded: Guarded) -> None:
    create = {"games": [KITCHEN], "key": "auth"}
    answer = guarded.call("env", "POST", "/v1/sessions", READ, json=create)
    (session,) = answer.json()["sessions"]
    step = {"id": session["id"], "turn": 0, "command": "look"}
    for method, service, path, body in [
        ("POST", "env", "/v1/sessions/expert", {"ids": [session["id"]]}),
        ("POST", "env", "/v1/steps", {"steps": [step], "expert": True}),
        ("GET", "env", f"/v1/sessions/{session['id']}/hidden", None),
        ("POST", "prm", "/v1/checkpoints/load", {"version": "prm/0"}),
        ("POST", "policy", "/v1/checkpoints/load", {"version": "policy/0"}),
    ]:
        refused = guarded.call(service, method, path, READ, json=body)
        assert (refused.status_code, refused.json()["title"]) == (403, "Admin key needed"), path
        assert guarded.call(service, method, path, ADMIN, json=body).status_code == 200, path
    step["turn"] = 1
    stepped = guarded.call("env", "POST", "/v1/steps", READ, json={"steps": [step]})
    assert stepped.json()["results"][0]["session"]["turn"] == 2
    assert guarded.call("prm", "GET", "/metrics", READ).status_code == 200


def test_sockets_need_a_key(guarded: Guarded) -> None:
    url = guarded.urls["env"].replace("http", "ws") + "/ws"
    for headers in ({}, {"Authorization": "Bearer unknown-key-0123456789"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(url, proxy=None, additional_headers=headers)
        assert refused.value.response.status_code == 401
    with connect(url, proxy=None, additional_headers={"Authorization": f"Bearer {READ}"}) as ws:
        ws.send('{"type": "state"}')
        assert '"step_count":0' in str(ws.recv(timeout=30))


def test_the_policy_sends_its_key_to_the_prm(guarded: Guarded) -> None:
    answer = guarded.call("policy", "POST", "/v1/act", READ, json=ACT)
    assert answer.status_code == 200, answer.text
    assert answer.json()["prm_version"] == "prm/0"


def test_the_client_sends_the_key_of_its_environment(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, status in ((READ, 403), ("unknown-key-0123456789", 401)):
        monkeypatch.setenv("AGENTPRM_API_KEY", key)
        with PRMClient(guarded.urls["prm"]) as prm, pytest.raises(ServiceError) as refused:
            prm.load("prm/0")
        assert refused.value.status == status
        assert key not in str(refused.value)
    monkeypatch.setenv("AGENTPRM_API_KEY", ADMIN)
    with PRMClient(guarded.urls["prm"]) as prm:
        assert prm.load("prm/0").version == "prm/0"
        assert ADMIN not in repr(vars(prm))


def test_keys_are_in_no_log(guarded: Guarded) -> None:
    """Neither those of requests that are logged, nor those the services were given."""
    unknown = "unknown-key-0123456789"
    for service in guarded.urls:
        file, deadline = guarded.logs / f"{service}.log", time.monotonic() + 10
        asked = file.read_text().count("unmatched") + 3
        for key in (READ, ADMIN, unknown):
            guarded.call(service, "GET", "/nowhere", key)
        while (log := file.read_text()).count("unmatched") < asked and time.monotonic() < deadline:
            time.sleep(0.05)
        assert log.count("unmatched") >= asked
        for key in (READ, ADMIN, POLICY_TO_PRM, unknown):
            assert key not in log


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, ["--host", "0.0.0.0"], "set AGENTPRM_API_KEYS=read:KEY,admin:KEY"),
        ({"AGENTPRM_API_KEYS": "read:secret-but-short"[:15]}, [], "16 to 256 characters"),
        ({"AGENTPRM_API_KEYS": f"write:{READ}"}, [], "entry 1 is neither read:KEY nor admin:KEY"),
        ({"AGENTPRM_API_KEYS": f"read:{READ}", "AGENTPRM_NO_AUTH": "true"}, [], "unset one"),
        ({"AGENTPRM_API_KEY": "short"}, [], "AGENTPRM_API_KEY: a key has 16"),
    ],
)
def test_a_service_refuses_to_start_unguarded(
    tmp_path: Path, environment: dict[str, str], flags: list[str], message: str
) -> None:
    write_kitchen(tmp_path)
    started = subprocess.run(
        [sys.executable, "-m", "services.env", "--data", str(tmp_path), "--port", "0", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode != 0
    assert message in started.stderr
    assert len(started.stderr.splitlines()) == 1
    for value in environment.values():
        assert value == "true" or value not in started.stderr
