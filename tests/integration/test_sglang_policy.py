"""The policy on real SGLang servers: parity with transformers, swaps of all replicas or none."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agentprm.client import PolicyClient, ServiceError
from agentprm.config import Scratch
from agentprm.encoding import encode
from agentprm.models.replicas import Replicas, ReplicasError
from agentprm.models.sglang import SGLangClient
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, ActRequest, Message, Sampling, State, Step
from agentprm.registry import Registry
from services.policy.decoding import Decoder, Query
from services.policy.engine import Draw, Prompt, Question, Sample
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.engine.sglang import SGLangEngine
from services.trainer.tiny import create_tiny
from tests.models import tiny_causal_lm
from tests.processes import service
from tests.sglang_server import SGLangServer, sglang_cpu

pytestmark = pytest.mark.timeout(900)
CLOSE = 1e-3
COMMANDS = ("go to cabinet 1", "go to cabinet 10", "take mug 1 from cabinet 1", "look")


def state(rng: random.Random) -> State:
    """A state after up to five turns."""
    rooms = [
        f"You are in the middle of a room. You see a cabinet {rng.randint(1, 20)}."
        for _ in range(rng.randint(1, 6))
    ]
    action = Action(reason="find mug", command=f"go to cabinet {rng.randint(1, 20)}")
    return State(
        task="put some mug in cabinet",
        history=tuple(Step(observation=room, action=action) for room in rooms[:-1]),
        observation=rooms[-1],
        admissible=COMMANDS,
    )


STATES = [state(random.Random(k)) for k in range(32)]
CONVERSATIONS = [tuple(load_prompt("chat").messages(state)) for state in STATES]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """0 and 1 can be swapped; 2 computes NaN, 3 has a layer less; 4 and 5 are the tiny model."""
    sglang_cpu()
    registry = Registry(tmp_path_factory.mktemp("checkpoints"))

    def llama(seed: int, layers: int = 2) -> Path:
        path = tmp_path_factory.mktemp("model")
        return tiny_causal_lm(path, seed, layers=layers, tie_word_embeddings=False)

    broken = llama(2)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    for number, path in enumerate([llama(0), llama(1), broken, llama(0, layers=1)]):
        registry.adopt(path, f"policy/{number}")
    for number in (4, 5):
        path = tmp_path_factory.mktemp("model")
        create_tiny(path, number, Scratch(layers=2, width=64, feed_forward=128))
        weights = load_file(path / "model.safetensors")
        louder = {name: w if "norm" in name else 10 * w for name, w in weights.items()}
        save_file(louder, path / "model.safetensors", {"format": "pt"})  # else it repeats a word
        registry.adopt(path, f"policy/{number}")
    return registry


@pytest.fixture(scope="module")
def servers(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two replicas of the Llama, one of the tiny model."""
    started: list[SGLangServer] = []
    try:
        for number in (0, 0, 4):
            model = tmp_path_factory.mktemp("start") / "model"
            shutil.copytree(registry.path(f"policy/{number}"), model)
            started.append(SGLangServer(model))
        yield [server.wait() for server in started]
    finally:
        for server in started:
            server.process.terminate()
        for server in started:
            server.stop()


@pytest.fixture(params=["llama", "tiny"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def replicas(servers: list[SGLangServer], kind: str) -> Iterator[Replicas]:
    found = servers[:2] if kind == "llama" else servers[2:]
    replicas = Replicas([server.url for server in found])
    yield replicas
    replicas.close()


def versions(kind: str) -> tuple[str, str]:
    return ("policy/0", "policy/1") if kind == "llama" else ("policy/4", "policy/5")


def put(registry: Registry, version: str, replicas: Replicas) -> SGLangEngine:
    engine = SGLangEngine.load(registry.path(version), replicas)
    replicas.compare(engine)
    replicas.put(engine)
    return engine


def plain(registry: Registry, version: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(registry.path(version), dtype="float32").eval()


def log_probs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
    values = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    found: list[float] = values[range(len(answer)), list(answer)].tolist()
    return found


def test_greedy_tokens_and_log_probabilities_are_transformers(
    registry: Registry, replicas: Replicas, kind: str
) -> None:
    prompts = [Prompt(conversation) for conversation in CONVERSATIONS]
    seen = []
    for version in versions(kind):  # the second after a swap
        engine = put(registry, version, replicas)
        model = plain(registry, version)
        found = engine.generate(prompts, Draw(temperature=0.0, max_tokens=12))
        for prompt, [sample] in zip(prompts, found, strict=True):
            ids = engine.codec.prompt(prompt.messages)
            with torch.inference_mode():
                whole = model.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=12,
                    do_sample=False,
                    eos_token_id=sorted(engine.codec.ends),
                )
            assert sample.ids == whole[0, len(ids) :].tolist()
            assert sample.log_probs == pytest.approx(log_probs(model, ids, sample.ids), abs=CLOSE)
        seen.append([sample.ids for [sample] in found])
    assert seen[0] != seen[1]


def test_log_probabilities_are_those_of_temperature_1(
    registry: Registry, replicas: Replicas, kind: str
) -> None:
    version, _ = versions(kind)
    engine = put(registry, version, replicas)
    model = plain(registry, version)
    for temperature in (0.5, 1.0, 2.0):
        draw = Draw(n=4, temperature=temperature, max_tokens=6)
        found = engine.generate([Prompt(c) for c in CONVERSATIONS[:3]], draw)
        assert len({tuple(sample.ids) for samples in found for sample in samples}) > 3
        for conversation, samples in zip(CONVERSATIONS, found, strict=False):
            ids = engine.codec.prompt(conversation)
            for sample in samples:
                want = log_probs(model, ids, sample.ids)
                assert sample.log_probs == pytest.approx(want, abs=CLOSE)


def test_sampling_follows_the_models_distribution(
    registry: Registry, replicas: Replicas, kind: str
) -> None:
    version, _ = versions(kind)
    engine = put(registry, version, replicas)
    ids = engine.codec.prompt(CONVERSATIONS[0])
    with torch.inference_mode():
        logits = plain(registry, version)(torch.tensor([ids])).logits[0, -1]
    want = torch.softmax(logits / 0.7, dim=-1)
    draws = engine.generate([Prompt(CONVERSATIONS[0])], Draw(800, 0.7, max_tokens=1))[0]
    counts = torch.bincount(torch.tensor([s.ids[0] for s in draws]), minlength=len(want))
    # The expected total variation of 800 draws, and four of its standard deviations.
    error = (counts / 800 - want).abs().sum() / 2
    spread = (want * (1 - want) / 800).sqrt().sum() * (2 / torch.pi) ** 0.5 / 2
    assert error < spread + 4 * (1 / 800) ** 0.5 / 2


def test_commands_score_as_by_the_embedded_engine(
    registry: Registry, replicas: Replicas, kind: str
) -> None:
    version, _ = versions(kind)
    engine = put(registry, version, replicas)
    embedded = EmbeddedEngine.load(
        registry.path(version), device="cpu", dtype="float32", cache_bytes=0
    )
    openings = ("REASON: find mug\nACTION: ", "REASON: look\nACTION: ", "")
    answers = tuple((opening, command) for opening in openings for command in COMMANDS)
    questions = [Question(conversation, answers) for conversation in CONVERSATIONS[:8]]
    for ours, theirs in zip(engine.score(questions), embedded.score(questions), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.ids == other.ids
            assert one.log_prob == pytest.approx(other.log_prob, abs=CLOSE)
            assert one.opening_log_prob == pytest.approx(other.opening_log_prob, abs=CLOSE)

    decoder = Decoder(load_prompt("chat"))
    queries = [Query(state, (3, k)) for k, state in enumerate(STATES[:8])]
    greedy = Sampling(temperature=0.0, max_tokens=8)
    acts = (decoder.act(e, queries, 1, greedy) for e in (engine, embedded))
    for here, there in zip(*acts, strict=True):
        assert here.best.action == there.best.action
        assert here.best.log_prob == pytest.approx(there.best.log_prob, abs=CLOSE)


def test_answers_end_at_stop_texts_and_at_the_models_length(
    registry: Registry, replicas: Replicas, kind: str
) -> None:
    version, _ = versions(kind)
    engine = put(registry, version, replicas)
    prompts = [Prompt(conversation, (1, k)) for k, conversation in enumerate(CONVERSATIONS)]
    stop = (" ", "\n", "1")
    samples = [s for [s] in engine.generate(prompts, Draw(max_tokens=16, stop=stop))]
    assert all(not any(text in sample.text for text in stop) for sample in samples)

    def stopped(sample: Sample) -> bool:
        text = engine.codec.text(sample.ids)
        return sample.ids[-1] in engine.codec.ends or any(mark in text for mark in stop)

    assert [sample.finished for sample in samples] == [stopped(sample) for sample in samples]

    def prompt_ids(messages: tuple[Message, ...]) -> list[int]:
        return encode(engine.codec._tokenizer, messages, generation_prompt=True).ids

    def fitting(tokens: int) -> tuple[Message, ...]:
        text = "a cabinet 1, " * 10_000
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            long = (Message(role="user", content=text[:middle]),)
            low, high = (middle, high) if len(prompt_ids(long)) <= tokens else (low, middle - 1)
        return (Message(role="user", content=text[:low]),)

    nearly = fitting(engine.max_length - 2)
    [[sample]] = engine.generate([Prompt(nearly)], Draw(temperature=0.0, max_tokens=16))
    room = engine.max_length - len(engine.codec.prompt(nearly))
    assert len(sample.ids) == room or sample.finished


def test_weights_that_do_not_fit_leave_no_replica_on_them(
    registry: Registry, servers: list[SGLangServer]
) -> None:
    replicas = Replicas([server.url for server in servers[:2]])
    engine = put(registry, "policy/0", replicas)
    for version, reason, left in [
        ("policy/2", "not finite", None),
        ("policy/3", "num_hidden_layers 2, the checkpoint has 1", engine.tag),
        ("policy/4", "tokenizer", engine.tag),
    ]:
        with pytest.raises(ReplicasError, match=reason) as caught:
            put(registry, version, replicas)
        assert caught.value.refused
        assert set(replicas.tags().values()) == {left}
        put(registry, "policy/0", replicas)
    replicas.close()


@pytest.fixture(scope="module")
def url(registry: Registry, servers: list[SGLangServer]) -> Iterator[str]:
    flags = ["--registry", str(registry.root), "--checkpoint", "policy/0", "--engine", "sglang"]
    urls = ["--engine-url", ",".join(server.url for server in servers[:2])]
    with service("policy", *flags, *urls, "--engine-timeout", "60") as (_, url):
        yield url


def act(policy: PolicyClient, number: int) -> tuple[str, Any]:
    """Greedily, so that the version says what the answer has to be."""
    states = STATES[number % 8 : number % 8 + 2]
    greedy = Sampling(temperature=0.0, max_tokens=8)
    answer = policy.act(ActRequest(states=states, sampling=greedy))
    return answer.policy_version, [result.best.action for result in answer.results]


def replicas_of(url: str) -> list[str | None]:
    details = httpx.get(f"{url}/health").json()["details"]
    assert details["engine"] == "sglang"
    return [tag and tag.split("@")[0] for name, tag in details.items() if "replica http" in name]


def test_answers_under_way_during_swaps_are_of_one_version(url: str) -> None:
    with PolicyClient(url) as policy:
        want: dict[tuple[str, int], Any] = {}
        for version in ("policy/0", "policy/1"):
            policy.load(version)
            want |= {(version, number): act(policy, number)[1] for number in range(8)}
        assert any(want["policy/0", k] != want["policy/1", k] for k in range(8))
        with ThreadPoolExecutor(6) as threads:
            answers = threads.map(lambda k: (k % 8, *act(policy, k)), range(48))
            for swap in range(6):
                loaded = policy.load(f"policy/{swap % 2}")
                assert loaded.version == f"policy/{swap % 2}"
                assert replicas_of(url) == [loaded.version] * 2
            found = list(answers)
        assert {version for _, version, _ in found} == {"policy/0", "policy/1"}
        for number, version, actions in found:
            assert actions == want[version, number]


def test_a_refused_checkpoint_leaves_both_replicas_on_the_old_one(url: str) -> None:
    with PolicyClient(url) as policy:
        policy.load("policy/0")
        before = act(policy, 0)
        with pytest.raises(ServiceError, match="not finite") as caught:
            policy.load("policy/2")
        assert caught.value.status == 409
        assert replicas_of(url) == ["policy/0", "policy/0"]
        assert act(policy, 0) == before


def test_a_replica_that_is_down_fails_the_swap_and_comes_back_on_what_serves(
    url: str, servers: list[SGLangServer]
) -> None:
    with PolicyClient(url) as policy:
        policy.load("policy/1")
        before = act(policy, 0)
        servers[1].stop()
        load = f"{url}/v1/checkpoints/load"  # not by the client, which would try again
        refused = httpx.post(load, json={"version": "policy/0"}, timeout=60)
        assert refused.status_code == 503
        assert f"127.0.0.1:{servers[1].port}" in refused.json()["detail"]
        assert replicas_of(url) == ["policy/1", None]
        with SGLangClient(servers[0].url) as left:
            assert left.model_info().version.startswith("policy/1@")
        assert act(policy, 0) == before

        servers[1].start()  # with policy/0, as at its first start
        servers[1].wait()
        deadline = time.monotonic() + 60
        while replicas_of(url) != ["policy/1", "policy/1"]:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert act(policy, 0) == before
        policy.load("policy/0")
        assert replicas_of(url) == ["policy/0", "policy/0"]
