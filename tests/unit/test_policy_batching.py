import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentprm.models.serving import Serving
from agentprm.protocol import ActRequest, Message, State
from agentprm.registry import Registry
from services.policy.app import build_app
from services.policy.batching import Batcher
from services.policy.engine import Draw, Prompt, Sample
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.settings import PolicySettings
from tests.models import tiny_causal_lm
from tests.unit.test_service import running as serving_at


@pytest.mark.parametrize("concurrency", [1, 2])
def test_as_many_batches_are_computed_side_by_side_as_told(
    tmp_path: Path, concurrency: int
) -> None:
    registry = Registry(tmp_path)
    with registry.write("policy/0") as draft:
        (draft / "weights.txt").write_text("x")
    inside = most = 0
    lock = threading.Lock()

    def work(_: Any, items: Sequence[int]) -> list[int]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.05)
        with lock:
            inside -= 1
        return [2 * item for item in items]

    async def main() -> list[tuple[str, Sequence[Any]]]:
        serving = Serving("policy", registry, lambda path: path, lambda *_: None)
        await serving.load("policy/0")
        batcher = Batcher(serving, max_waiting=100, concurrency=concurrency)
        async with batcher.running():
            # Kinds differ, so that none are merged.
            return await asyncio.gather(*(batcher.submit(k, work, [k], 1) for k in range(4)))

    assert asyncio.run(main()) == [("policy/0", [2 * k]) for k in range(4)]
    assert most == concurrency


def test_what_everybody_gave_up_is_not_computed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who comes after waits for it, for minutes: an engine asks after every token."""
    path = tiny_causal_lm(tmp_path / "model", 0)
    engine = EmbeddedEngine.load(path, device="cpu", dtype="auto", cache_bytes=2**20)
    registry = Registry(tmp_path / "checkpoints")
    registry.adopt(path, "policy/0")
    compute, begun, tokens = engine._compute, threading.Event(), 0

    def slow(*inputs: Any) -> Any:
        nonlocal tokens
        tokens += 1
        begun.set()
        time.sleep(0.1)
        return compute(*inputs)

    def answer(weights: EmbeddedEngine, prompts: Sequence[Prompt]) -> list[list[Sample]]:
        return weights.generate(prompts, Draw(max_tokens=300, temperature=10.0))

    async def main() -> Sequence[Any]:
        serving = Serving("policy", registry, lambda _: engine, lambda *_: None)
        await serving.load("policy/0")
        monkeypatch.setattr(engine, "_compute", slow)
        batcher = Batcher(serving, max_waiting=100)
        prompts = [Prompt((Message(role="user", content="You see a mug 1."),))]
        async with batcher.running():
            impatient = asyncio.create_task(batcher.submit("a", answer, prompts, 1))
            await asyncio.to_thread(begun.wait, 20)
            impatient.cancel()
            return (await batcher.submit("b", lambda *_: ["next"], [0], 1))[1]

    assert asyncio.run(main()) == ["next"]
    assert tokens < 10


def test_what_was_given_up_is_not_computed_alone_after_a_fault(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with registry.write("policy/0") as draft:
        (draft / "weights.txt").write_text("x")
    computed: list[list[str]] = []

    async def main() -> tuple[str, Sequence[Any]]:
        loop = asyncio.get_running_loop()

        def work(_: Any, items: Sequence[str]) -> Sequence[str]:
            computed.append(list(items))
            if len(items) > 1:
                loop.call_soon_threadsafe(left.cancel)
                raise RuntimeError("of one of them")
            return items

        serving = Serving("policy", registry, lambda path: path, lambda *_: None)
        await serving.load("policy/0")
        batcher = Batcher(serving, max_waiting=100)
        left = asyncio.create_task(batcher.submit("kind", work, ["left"], 1))
        stays = asyncio.create_task(batcher.submit("kind", work, ["stays"], 1))
        await asyncio.sleep(0)  # both wait before the first is taken
        async with batcher.running():
            return await stays

    assert asyncio.run(main()) == ("policy/0", ["stays"])
    assert computed == [["left", "stays"], ["stays"]]


@dataclass(frozen=True)
class HeldUp:
    """A model whose computations wait, from now on, until they may go on."""

    begun: threading.Event
    go_on: threading.Event
    asked: list[str]
    """What the last message of each prompt said, in the order they were computed in."""


def held_up(monkeypatch: pytest.MonkeyPatch) -> HeldUp:
    model = HeldUp(threading.Event(), threading.Event(), [])
    generate = EmbeddedEngine.generate

    def slow(self: EmbeddedEngine, prompts: Sequence[Prompt], draw: Draw) -> list[list[Sample]]:
        model.asked.extend(prompt.messages[-1].content for prompt in prompts)
        model.begun.set()
        model.go_on.wait(30)
        return generate(self, prompts, draw)

    monkeypatch.setattr(EmbeddedEngine, "generate", slow)
    return model


@pytest.mark.parametrize("route", ["/v1/act", "/v1/chat/completions"])
def test_what_a_client_that_left_asked_for_is_not_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.adopt(tiny_causal_lm(tmp_path / "model", 0), "policy/0")

    def body(seen: str) -> dict[str, Any]:
        if route == "/v1/act":
            state = State(task="put mug in cabinet", observation=seen, admissible=("look",))
            return ActRequest(states=[state]).model_dump(mode="json")
        messages = [{"role": "user", "content": seen}]
        return {"model": "policy", "messages": messages, "max_tokens": 4}

    def post(seen: str, timeout: float) -> httpx.Response:
        return httpx.post(f"{url}{route}", json=body(seen), timeout=timeout)

    app = build_app(PolicySettings(registry=registry.root, checkpoint="policy/0", device="cpu"))
    with serving_at(app) as url, ThreadPoolExecutor() as clients:
        while httpx.get(f"{url}/health").json()["status"] != "healthy":
            time.sleep(0.05)
        model = held_up(monkeypatch)
        first = clients.submit(post, "the first", 60)
        assert model.begun.wait(30)
        with contextlib.suppress(httpx.TimeoutException):
            post("the one that left", 0.5)
        last = clients.submit(post, "the last", 60)
        while httpx.get(f"{url}/health").json()["details"]["waiting_samples"] < 2:
            time.sleep(0.05)
        model.go_on.set()
        assert (first.result().status_code, last.result().status_code) == (200, 200)
        metrics = httpx.get(f"{url}/metrics").text
    assert [text for text in model.asked if "the one that left" in text] == []
    assert len(model.asked) == 2
    assert f'route="{route}",service="policy",status="499"' in metrics


def test_a_long_conversation_is_encoded_while_the_model_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.adopt(tiny_causal_lm(tmp_path / "model", 0), "policy/0")

    def post(text: str) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        body = {"model": "policy", "messages": messages, "max_tokens": 4}
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)

    app = build_app(PolicySettings(registry=registry.root, checkpoint="policy/0", device="cpu"))
    with serving_at(app) as url, ThreadPoolExecutor() as clients:
        while httpx.get(f"{url}/health").json()["status"] != "healthy":
            time.sleep(0.05)
        model = held_up(monkeypatch)
        first = clients.submit(post, "look")
        assert model.begun.wait(30)
        refused = post("go to cabinet 1, " * 4000)
        assert not first.done()
        model.go_on.set()
        assert first.result().status_code == 200
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_a_version_that_was_swapped_out_while_a_request_for_it_waited_is_not_answered_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path / "registry")
    for k in range(2):
        registry.adopt(tiny_causal_lm(tmp_path / f"model-{k}", k), f"policy/{k}")

    def post(model: str, tokens: int) -> httpx.Response:
        messages = [{"role": "user", "content": "look"}]
        body = {"model": model, "messages": messages, "max_tokens": tokens}
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)

    app = build_app(PolicySettings(registry=registry.root, checkpoint="policy/0", device="cpu"))
    with serving_at(app) as url, ThreadPoolExecutor() as clients:
        while httpx.get(f"{url}/health").json()["status"] != "healthy":
            time.sleep(0.05)
        model = held_up(monkeypatch)
        first = clients.submit(post, "policy/0", 4)
        assert model.begun.wait(30)
        waiting = [clients.submit(post, model, 5) for model in ("policy/0", "policy")]
        while httpx.get(f"{url}/health").json()["details"]["waiting_samples"] < 2:
            time.sleep(0.02)
        loaded = httpx.post(f"{url}/v1/checkpoints/load", json={"version": "policy/1"}, timeout=60)
        assert loaded.status_code == 200, loaded.text
        model.go_on.set()
        pinned, alias = (each.result() for each in waiting)
    assert first.result().json()["model"] == "policy/0"
    assert alias.json()["model"] == "policy/1"
    assert pinned.status_code == 404
    assert pinned.json()["error"]["code"] == "model_not_found"
