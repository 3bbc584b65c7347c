"""The policy service as a process: act, chat, hot swap, and what bad input gets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from agentprm.cli.ports import free_port
from agentprm.client import PolicyClient, ServiceError
from agentprm.protocol import ActRequest, Sampling
from agentprm.registry import Registry
from tests.models import tiny_causal_lm
from tests.processes import service
from tests.states import STATE

CHAT = {"model": "policy", "messages": [{"role": "user", "content": "You see a mug 1."}]}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("checkpoints"))
    for number in (0, 1):
        path = tiny_causal_lm(tmp_path_factory.mktemp("model"), number)
        registry.adopt(path, f"policy/{number}")
    broken = tiny_causal_lm(tmp_path_factory.mktemp("model"), 2)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    registry.adopt(broken, "policy/2")
    shutil.copytree(registry.root / "policy/1", registry.root / "policy/3")
    (registry.root / "policy/3" / "STABLE").unlink()
    return registry


@pytest.fixture(scope="module")
def url(registry: Registry) -> Iterator[str]:
    nobody = f"http://127.0.0.1:{free_port()}"
    flags = ["--registry", str(registry.root), "--checkpoint", "policy/0", "--queue", "64"]
    with service("policy", *flags, "--prm-url", nobody, "--prm-deadline", "1") as (_, url):
        yield url


@pytest.fixture
def policy(url: str) -> Iterator[PolicyClient]:
    with PolicyClient(url) as client:
        client.load("policy/0")
        yield client


def post(url: str, body: str | bytes) -> httpx.Response:
    """To /v1/act, by a client without retries."""
    headers = {"content-type": "application/json"}
    return httpx.post(f"{url}/v1/act", content=body, headers=headers, timeout=60)


def act(policy: PolicyClient, **options: Any) -> Any:
    sampling = Sampling(max_tokens=12)
    return policy.act(ActRequest(states=[STATE] * 3, sampling=sampling, seed=4, **options))


def test_act_gives_candidates_of_one_version_and_the_same_ones_for_a_seed(
    policy: PolicyClient,
) -> None:
    answer = act(policy, n=4)
    assert answer.policy_version == "policy/0"
    assert answer.prm_version is None
    for result in answer.results:
        assert result.chosen == 0
        assert sum(candidate.count for candidate in result.candidates) == 4
        assert {c.action.command for c in result.candidates} <= set(STATE.admissible)
    assert act(policy, n=4) == answer


def test_a_swap_changes_the_answers_and_the_version(policy: PolicyClient) -> None:
    before = act(policy)
    loaded = policy.load("policy/1")
    assert (loaded.version, loaded.previous) == ("policy/1", "policy/0")
    after = act(policy)
    assert after.policy_version == "policy/1"
    assert after.results != before.results
    policy.load("policy/0")
    assert act(policy) == before


def test_a_checkpoint_that_cannot_serve_is_refused_and_the_old_one_serves_on(
    policy: PolicyClient, url: str
) -> None:
    before = act(policy)
    refused = {"policy/2": 409, "policy/3": 409, "policy/77": 404, "../policy/0": 422}
    for version, status in refused.items():
        answer = httpx.post(f"{url}/v1/checkpoints/load", json={"version": version}, timeout=30)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert act(policy) == before


def test_bad_requests_are_4xx(url: str) -> None:
    state = STATE.model_dump()
    long = {"observation": "You see.", "action": {"command": "x" * 2**20}}
    bodies: list[tuple[str | bytes, int]] = [
        (b'{"states": [', 422),
        (b"[]", 422),
        (ActRequest(states=[STATE]).model_dump_json().replace('"n":1', '"n":65'), 422),
        (httpx.Request("POST", url, json={"states": [state | {"history": [long]}]}).content, 422),
        (b" " * (17 * 2**20), 413),
    ]
    for body, status in bodies:
        answer = post(url, body)
        assert answer.status_code == status, answer.text[:200]
        assert answer.json()["status"] == status


def test_a_state_beyond_the_models_length_is_a_422_naming_both_numbers(
    policy: PolicyClient,
) -> None:
    state = STATE.model_copy(update={"observation": "You see a mug 1. " * 200})
    with pytest.raises(ServiceError, match=r"take at least \d{4} tokens, the model takes 512"):
        policy.act(ActRequest(states=[state]))


def test_no_prm_is_a_503_that_says_so(url: str) -> None:
    body = ActRequest(states=[STATE], n=2, prm=True, sampling=Sampling(max_tokens=4))
    answer = post(url, body.model_dump_json())
    assert answer.status_code == 503
    assert "the PRM did not answer" in answer.json()["detail"]


def test_requests_that_wait_together_are_answered_as_if_alone(policy: PolicyClient) -> None:
    requests = [
        ActRequest(states=[STATE] * (1 + k % 3), sampling=Sampling(max_tokens=12), seed=k)
        for k in range(12)
    ]
    alone = [policy.act(request) for request in requests]
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(policy.act, requests))
    for a, b in zip(alone, together, strict=True):
        assert [r.best.action for r in a.results] == [r.best.action for r in b.results]


def test_a_full_queue_is_a_429(url: str) -> None:
    body = ActRequest(states=[STATE], n=60, sampling=Sampling(max_tokens=64)).model_dump_json()

    def ask(_: int) -> httpx.Response:
        return post(url, body)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(a.headers["retry-after"] == "1" for a in answers if a.status_code == 429)


def test_chat_completions_have_openais_shape(policy: PolicyClient, url: str) -> None:
    options = {"n": 2, "max_tokens": 5, "seed": 1, "logprobs": True, "user": "x", "store": False}
    options |= {"top_p": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}
    options |= {"temperature": None, "stream": None, "tools": [], "response_format": None}
    answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT | options, timeout=30).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "policy/0"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        assert choice["message"]["role"] == "assistant"
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["content"]) == 5
        assert all(token["logprob"] <= 0 for token in choice["logprobs"]["content"])
    usage = answer["usage"]
    tokens = sum(len(choice["logprobs"]["content"]) for choice in answer["choices"])
    assert usage["completion_tokens"] == tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + tokens
    options["stop"] = [answer["choices"][0]["logprobs"]["content"][2]["token"]]
    stopped = httpx.post(f"{url}/v1/chat/completions", json=CHAT | options, timeout=30).json()
    choice = stopped["choices"][0]
    assert choice["finish_reason"] == "stop"
    shown = "".join(token["token"] for token in choice["logprobs"]["content"])
    assert shown == choice["message"]["content"]
    models = httpx.get(f"{url}/v1/models").json()
    assert [model["id"] for model in models["data"]][:2] == ["policy", "policy/0"]
    for model in models["data"]:
        assert httpx.get(f"{url}/v1/models/{model['id']}").json() == model
    unknown = httpx.get(f"{url}/v1/models/gpt-4")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, 400, "tools", None),
        ({"functions": [{"name": "f"}]}, 400, "functions", None),
        ({"top_p": 0.9}, 400, "top_p", None),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", None),
        ({"presence_penalty": -1}, 400, "presence_penalty", None),
        ({"logit_bias": {"17": 5}}, 400, "logit_bias", None),
        ({"logit_bias": {str(k): [] for k in range(100_000)}}, 400, "logit_bias", None),
        ({"logprobs": True, "top_logprobs": 2}, 400, "top_logprobs", None),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", None),
        ({"messages": [CHAT["messages"][0]] * 501}, 400, "messages", None),
        ({"stop": ["x"] * 17}, 400, "stop", None),
        ({"model": "gpt-4"}, 404, "model", "model_not_found"),
        ({"messages": []}, 400, "messages", None),
        (
            {"messages": [{"role": "user", "content": "You see a mug 1. " * 200}]},
            400,
            None,
            "context_length_exceeded",
        ),
    ],
)
def test_chat_errors_have_openais_shape(
    policy: PolicyClient,
    url: str,
    change: dict[str, Any],
    status: int,
    param: str | None,
    code: str | None,
) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT | change, timeout=30)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_a_problem_of_a_chat_is_counted_and_says_when_to_come_back(url: str) -> None:
    def counted() -> float:
        name = 'agentprm_http_problems_total{problem="prm-unavailable",service="policy"} '
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = counted()
    best = CHAT | {"model": "best-of-2", "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/chat/completions", json=best, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "prm_unavailable")
    assert answer.headers.get_list("retry-after") == ["1"]
    assert counted() == before + 1


def test_without_a_checkpoint_it_waits_and_after_a_restart_it_serves_the_last(
    registry: Registry, tmp_path: Path
) -> None:
    empty = Registry(tmp_path)
    flags = ["--registry", str(tmp_path), "--prompt", "state"]
    with service("policy", *flags) as (_, url):
        body = ActRequest(states=[STATE], sampling=Sampling(max_tokens=4)).model_dump_json()
        answer = post(url, body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        empty.adopt(registry.path("policy/1"), "policy/1")
        with PolicyClient(url) as policy:
            policy.load("policy/1")
            assert act(policy).policy_version == "policy/1"
            with pytest.raises(ServiceError, match="without --prm-url"):
                PolicyClient(url, deadline=1).act(ActRequest(states=[STATE], prm=True))
        metrics = httpx.get(f"{url}/metrics").text
        assert 'agentprm_policy_prompt_tokens_total{source="computed"}' in metrics
    with service("policy", *flags) as (_, url):
        assert httpx.get(f"{url}/health").json()["version"] == "policy/1"
