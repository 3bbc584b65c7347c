"""The policy service in this process: what a chat asks for, and what stands in its way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from agentprm.protocol import CONTEXT_TOO_LONG, ActRequest, Decoding, Sampling
from agentprm.registry import Registry
from services.policy.app import build_app
from services.policy.settings import PolicySettings
from services.prm.app import build_app as build_prm
from services.prm.settings import PRMServiceSettings
from tests.fake_services import serving
from tests.models import tiny_causal_lm
from tests.scorers import tiny_scorer
from tests.states import STATE

CHAT = {"model": "policy", "messages": [{"role": "user", "content": "You see a mug 1."}]}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A policy, and a PRM that reads less than it."""
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    registry.adopt(tiny_causal_lm(tmp_path_factory.mktemp("model"), 0), "policy/0")
    with registry.write("prm/0") as draft:
        tiny_scorer(draft, seed=0, positions=256)
    return registry


@contextmanager
def policy(registry: Registry, **settings: Any) -> Iterator[str]:
    """The service with its checkpoint; its URL."""
    given = {"registry": registry.root, "checkpoint": "policy/0", "device": "cpu"} | settings
    with serving(build_app(PolicySettings.model_validate(given))) as url:
        wait_healthy(url)
        yield url


def wait_healthy(url: str) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/health").json()["status"] != "healthy":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def chat(url: str, **change: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=CHAT | change, timeout=60)


def act(url: str, seen: str, **options: Any) -> httpx.Response:
    state = STATE.model_copy(update={"observation": seen})
    sampling = Sampling(decoding=Decoding.FREE, max_tokens=8)
    request = ActRequest(states=[state], sampling=sampling, **options)
    return httpx.post(f"{url}/v1/act", json=request.model_dump(mode="json"), timeout=60)


@pytest.fixture(scope="module")
def alone(registry: Registry) -> Iterator[str]:
    """The service without a PRM."""
    with policy(registry) as url:
        yield url


def test_what_is_too_long_for_the_prm_is_too_long_as_for_the_policy(registry: Registry) -> None:
    """Rollouts and chat models' players give up a conversation that is told to be so, alone."""
    prm = PRMServiceSettings(registry=registry.root, checkpoint="prm/0", device="cpu")
    seen = "You see a mug 1. " * 50
    with serving(build_prm(prm)) as prm_url, policy(registry, prm_url=prm_url) as url:
        wait_healthy(prm_url)
        native = act(url, seen, n=2, prm=True)
        messages = [{"role": "user", "content": seen}]
        answer = chat(url, model="best-of-2", messages=messages, max_tokens=8)
    problem, error = native.json(), answer.json()["error"]
    assert (native.status_code, problem["title"]) == (422, CONTEXT_TOO_LONG)
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    for said in (problem["detail"], error["message"]):
        assert "the model reads 256" in said
        assert "http" not in said


def test_a_path_that_is_not_served_is_told_to_openais_clients_too(alone: str) -> None:
    """Without its base_url's `/v1`, with another of OpenAI's protocols, or another method."""
    messages: Any = CHAT["messages"]

    def ask(path: str) -> OpenAI:
        return OpenAI(base_url=alone + path, api_key="none", max_retries=0)

    with pytest.raises(openai.NotFoundError, match=r"no POST /chat/completions.* ends in /v1"):
        ask("").chat.completions.create(model="policy", messages=messages)
    with pytest.raises(openai.NotFoundError, match=r"no POST /v1/responses.*/v1/chat/completions"):
        ask("/v1").responses.create(model="policy", input="x")
    with pytest.raises(openai.NotFoundError, match=r"no POST /v1/completions.*/v1/chat/") as found:
        ask("/v1").completions.create(model="policy", prompt="x")
    assert (found.value.type, found.value.param, found.value.code) == (
        "invalid_request_error",
        None,
        None,
    )
    body = found.value.response.json()
    assert (body["status"], body["title"]) == (404, "Not Found")
    assert body["instance"].endswith(found.value.response.headers["x-request-id"])
    assert found.value.response.headers["content-type"] == "application/problem+json"
    other = httpx.get(f"{alone}/v1/act")
    assert (other.status_code, other.headers["allow"]) == (405, "POST")
    assert "no GET /v1/act" in other.json()["error"]["message"]


def test_what_a_served_path_does_not_find_is_a_problem_alone(alone: str) -> None:
    load = httpx.post(f"{alone}/v1/checkpoints/load", json={"version": "policy/7"})
    assert (load.status_code, "error" in load.json()) == (404, False)


def batches(url: str) -> str:
    """How many the model has computed."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("agentprm_policy_batch_items_count"))


def test_nothing_is_sampled_for_a_prm_that_is_not_there(alone: str) -> None:
    before = batches(alone)
    native, answer = act(alone, "mug", n=2, prm=True), chat(alone, model="best-of-2")
    assert native.status_code == answer.status_code == 503
    assert "without --prm-url" in native.json()["detail"]
    assert answer.json()["error"]["code"] == "prm_unavailable"
    assert batches(alone) == before
    assert act(alone, "mug", n=2, prm=True, allow_degraded=True).json()["degraded"] is True
    marked = chat(alone, model="best-of-2", allow_degraded=True, max_tokens=4)
    assert (marked.status_code, marked.json()["degraded"]) == (200, True)
    assert batches(alone) != before
