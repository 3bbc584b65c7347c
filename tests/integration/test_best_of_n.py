"""Best-of-N of real policy and PRM processes, by this project's client and by OpenAI's."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pytest
import torch
from openai.types.chat import ChatCompletion
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from agentprm.cli.ports import free_port
from agentprm.cli.processes import Machine
from agentprm.client import PolicyClient
from agentprm.config import Scratch
from agentprm.encoding import encode
from agentprm.prompts import load_prompt
from agentprm.protocol import (
    Action,
    ActRequest,
    ActResponse,
    Decoding,
    Message,
    Sampling,
)
from agentprm.registry import Registry
from services.trainer.tiny.model import create_tiny
from tests import states

COMMANDS = ("go to cabinet 1", "take mug 1 from cabinet 1", "look", "inventory")
STATE = states.STATE.model_copy(update={"admissible": COMMANDS})
PROMPT = load_prompt("chat")
MESSAGES = PROMPT.messages(STATE)
CHAT: Any = [message.model_dump() for message in MESSAGES]
SAMPLING = Sampling(decoding=Decoding.FREE, temperature=0.7, max_tokens=40)


def teach(directory: Path) -> None:
    """A policy that has learned to answer in `STATE` with any of `COMMANDS`."""
    create_tiny(directory, shape=Scratch(width=64, layers=2))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    answers = [PROMPT.action_text(Action(reason="find mug", command=c)) for c in COMMANDS]
    encoded = [
        encode(tokenizer, [*MESSAGES, Message(role="assistant", content=a)]) for a in answers
    ]
    width = max(len(each.ids) for each in encoded)
    ids = torch.zeros(len(answers), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, each in enumerate(encoded):
        start, end = each.spans[-1]
        ids[row, :end] = torch.tensor(each.ids)
        labels[row, start:end] = ids[row, start:end]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=600)
    for _ in range(600):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        decay.step()
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    with registry.write("policy/0") as draft:
        teach(draft)
    with registry.write("prm/0") as draft:
        model = AutoModelForSequenceClassification.from_pretrained(
            registry.path("policy/0"), num_labels=1
        )
        torch.manual_seed(0)
        torch.nn.init.normal_(model.score.weight, std=0.3)  # so that it tells answers apart
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(registry.path("policy/0")).save_pretrained(draft)
    return registry


@contextmanager
def policy_and_prm(registry: Registry, run: Path) -> Iterator[Machine]:
    with Machine(run, {"OMP_NUM_THREADS": "1"}) as machine:
        start_prm(machine, registry, free_port())
        flags = ["--registry", str(registry.root), "--checkpoint", "policy/0", "--device", "cpu"]
        flags += ["--prm-url", machine.url("prm"), "--prm-unreachable", "0.5"]
        machine.start("policy", "services.policy", *flags, port=free_port())
        machine.wait_reachable(["prm", "policy"])
        yield machine


def start_prm(machine: Machine, registry: Registry, port: int) -> None:
    flags = ["--registry", str(registry.root), "--checkpoint", "prm/0", "--device", "cpu"]
    machine.start("prm", "services.prm", *flags, port=port)


def kill_prm(machine: Machine) -> None:
    pid = orjson.loads((machine.run / "processes.json").read_bytes())["prm"]["pid"]
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def machine(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with policy_and_prm(registry, tmp_path_factory.mktemp("machine")) as machine:
        yield machine


@pytest.fixture(scope="module")
def client(machine: Machine) -> openai.OpenAI:
    return openai_client(machine)


def openai_client(machine: Machine) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{machine.url('policy')}/v1", api_key="none", max_retries=0)


def act(url: str, **options: Any) -> ActResponse:
    """By one request, without retries."""
    request = ActRequest(states=[STATE], prm=True, sampling=SAMPLING, **options)
    body = request.model_dump(mode="json")
    answer = httpx.post(f"{url}/v1/act", json=body, timeout=60).raise_for_status()
    return ActResponse.model_validate_json(answer.content)


def test_every_candidate_is_shown_and_the_best_is_chosen(machine: Machine) -> None:
    answer = act(machine.url("policy"), n=16, seed=1)
    assert (answer.policy_version, answer.prm_version) == ("policy/0", "prm/0")
    assert not answer.degraded
    candidates = answer.results[0].candidates
    assert sum(candidate.count for candidate in candidates) == 16
    assert 1 < len(candidates) < 16
    assert {c.action.command for c in candidates} <= set(COMMANDS)
    assert all(c.text == PROMPT.action_text(c.action) for c in candidates)
    scores = [candidate.q or 0.0 for candidate in candidates]
    assert answer.results[0].best.q == max(scores)
    assert max(scores) - min(scores) > 0.01


@pytest.mark.parametrize("decoding", list(Decoding))
def test_64_samples_are_scored_and_drawn_by_the_seed(machine: Machine, decoding: Decoding) -> None:
    sampling = SAMPLING.model_copy(update={"decoding": decoding})
    request = ActRequest(states=[STATE] * 2, n=64, prm=True, sampling=sampling, seed=3)
    with PolicyClient(machine.url("policy")) as policy:
        answer = policy.act(request)
        assert [sum(c.count for c in r.candidates) for r in answer.results] == [64, 64]
        drawn = [
            policy.act(request.model_copy(update={"q_temperature": 1.0, "seed": seed}))
            for seed in (3, 3, 4, 5, 6, 7)
        ]
    assert drawn[0].results == drawn[1].results
    best = [[max(c.q or 0.0 for c in r.candidates) for r in a.results] for a in drawn]
    assert best != [[r.best.q for r in a.results] for a in drawn]


def test_a_state_rendered_as_messages_gets_the_same_answer_by_the_openai_protocol(
    machine: Machine, client: openai.OpenAI, registry: Registry
) -> None:
    native = act(machine.url("policy"), n=16, seed=5).results[0]
    completion = client.chat.completions.create(
        model="best-of-16", messages=CHAT, seed=5, max_tokens=SAMPLING.max_tokens
    )
    shown = {c["text"]: c for c in extra(completion, "prm")["candidates"]}
    assert [*shown] == [candidate.text for candidate in native.candidates]
    for candidate in native.candidates:
        assert shown[candidate.text]["count"] == candidate.count
        assert shown[candidate.text]["log_prob"] == pytest.approx(candidate.log_prob)
        assert shown[candidate.text]["q"] == pytest.approx(candidate.q, abs=1e-6)
    assert completion.choices[0].message.content == native.best.text
    assert len(native.candidates) > 1

    path = registry.path("prm/0")
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text, candidate in shown.items():
        whole = [*CHAT, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(whole, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            logit = model(input_ids=ids["input_ids"]).logits
        assert candidate["q"] == pytest.approx(float(logit.sigmoid()), abs=1e-5)


def test_the_winner_is_an_ordinary_completion(client: openai.OpenAI) -> None:
    ask = {"messages": CHAT, "seed": 2, "max_tokens": 40, "logprobs": True}
    one = client.chat.completions.create(model="best-of-8", **ask)
    same = client.chat.completions.create(model="policy", extra_body={"best_of": 8}, **ask)
    three = client.chat.completions.create(model="best-of-8", n=3, **ask)
    every = client.chat.completions.create(model="policy", n=8, **ask)

    assert one.model == "policy/0"
    assert one.choices == same.choices
    assert extra(one, "degraded") is False
    prm = extra(one, "prm")
    assert prm["version"] == "prm/0"
    assert sum(candidate["count"] for candidate in prm["candidates"]) == 8
    assert {candidate["text"] for candidate in prm["candidates"]} == set(contents(every))
    winner = one.choices[0]
    q = [candidate["q"] for candidate in prm["candidates"]]
    best = max(range(len(q)), key=q.__getitem__)
    assert extra(winner, "prm") == {"q": q[best], "version": "prm/0", "candidate": best}
    assert winner.message.content == prm["candidates"][best]["text"]
    assert winner.logprobs is not None
    assert winner.logprobs.content is not None
    assert "".join(token.token for token in winner.logprobs.content) == winner.message.content
    log_prob = sum(token.logprob for token in winner.logprobs.content)
    assert prm["candidates"][best]["log_prob"] <= log_prob  # which has the end of the turn, too

    assert [choice.index for choice in three.choices] == [0, 1, 2]
    by_q = sorted((q for c in prm["candidates"] for q in [c["q"]] * c["count"]), reverse=True)
    assert [extra(choice, "prm")["q"] for choice in three.choices] == by_q[:3]
    assert one.usage == three.usage == every.usage  # every sample is counted, returned or not
    assert one.usage is not None
    assert one.usage.completion_tokens == sum(
        len(choice.logprobs.content or []) + (choice.finish_reason == "stop")
        for choice in every.choices
        if choice.logprobs
    )


def test_what_was_cut_off_comes_behind_what_was_finished(client: openai.OpenAI) -> None:
    """The PRM reads it as if it were whole, and may like it best."""
    mixed = liked = 0
    for seed in range(12):
        answer = client.chat.completions.create(
            model="best-of-8", n=8, messages=CHAT, max_tokens=9, temperature=1.5, seed=seed
        )
        ended = [choice.finish_reason for choice in answer.choices]
        assert ended == sorted(ended, key=["stop", "length"].index)
        finished, cut = (
            [extra(c, "prm")["q"] for c in answer.choices if c.finish_reason == reason]
            for reason in ("stop", "length")
        )
        assert finished == sorted(finished, reverse=True)
        assert cut == sorted(cut, reverse=True)
        mixed += bool(finished and cut)
        liked += bool(finished and cut and cut[0] > finished[0])
        candidates = extra(answer, "prm")["candidates"]
        shown = {c.message.content: c.finish_reason for c in reversed(answer.choices)}
        assert {c["text"]: c["finish_reason"] for c in candidates} == shown
    assert mixed > liked > 0


def test_a_stream_says_what_the_completion_says(client: openai.OpenAI) -> None:
    ask = {"model": "best-of-4", "messages": CHAT, "seed": 2, "max_tokens": 40, "n": 2}
    create: Any = client.chat.completions.create
    whole = create(**ask)
    options = {"include_usage": True}
    chunks = [*create(**ask, stream=True, stream_options=options)]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert parts[0].delta.role == "assistant"
        assert [part.finish_reason for part in parts] == [None, choice.finish_reason]
        assert extra(parts[-1], "prm") == extra(choice, "prm")
    assert all(chunk.choices for chunk in create(**ask, stream=True))


def test_models_and_errors_are_openais(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["policy", "policy/0"]
    assert names[2:] == [f"best-of-{n}" for n in (1, 2, 4, 8, 16, 32, 64)]
    create = client.chat.completions.create
    odd = create(model="best-of-7", messages=CHAT, max_tokens=4)
    assert sum(candidate["count"] for candidate in extra(odd, "prm")["candidates"]) == 7
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="best-of-65", messages=CHAT)
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
    for options in ({"n": 9}, {"extra_body": {"best_of": 65}}, {"extra_body": {"best_of": 4}}):
        with pytest.raises(openai.BadRequestError) as bad:
            create(model="best-of-8", messages=CHAT, **options)
        assert bad.value.type == "invalid_request_error"
        assert bad.value.param in ("n", "best_of")


def test_a_prm_killed_in_the_middle_is_a_503_or_a_marked_sample_and_never_a_silent_0(
    registry: Registry, machine: Machine, client: openai.OpenAI
) -> None:
    """The last test: it leaves the machine with another PRM than it began with."""
    url = machine.url("policy")
    answered, refused = threading.Event(), threading.Event()

    def ask(k: int) -> int:
        """Until the PRM is gone; every answer has a Q of each candidate, or is a 503."""
        while True:
            try:
                candidates = act(url, n=4, seed=k).results[0].candidates
            except httpx.HTTPStatusError as error:
                refused.set()
                return error.response.status_code
            assert all(c.q is not None and 0 < c.q < 1 for c in candidates)
            answered.set()

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, k) for k in range(4)]
        assert answered.wait(60)
        kill_prm(machine)
        assert refused.wait(60)
        assert [each.result() for each in asking] == [503] * 4

    started = time.monotonic()
    with pytest.raises(httpx.HTTPStatusError) as problem:
        act(url, n=4)
    assert "the PRM did not answer" in problem.value.response.json()["detail"]
    with pytest.raises(openai.InternalServerError) as down:
        client.chat.completions.create(model="best-of-4", messages=CHAT, max_tokens=8)
    assert time.monotonic() - started < 20
    assert (down.value.status_code, down.value.code) == (503, "prm_unavailable")
    assert down.value.type == "server_error"
    assert down.value.response.headers["retry-after"] == "1"

    degraded = act(url, n=4, seed=2, allow_degraded=True)
    assert (degraded.degraded, degraded.prm_version) == (True, None)
    assert degraded.results[0].chosen == 0
    assert all(candidate.q is None for candidate in degraded.results[0].candidates)
    allowed = {"allow_degraded": True}
    ask_chat = {"messages": CHAT, "seed": 2, "max_tokens": 40}
    marked = client.chat.completions.create(model="best-of-4", extra_body=allowed, **ask_chat)
    plain = client.chat.completions.create(model="policy", n=4, **ask_chat)
    assert (extra(marked, "degraded"), extra(marked, "prm")) == (True, None)
    assert extra(marked.choices[0], "prm") is None
    assert contents(marked) == contents(plain)[:1]
    assert marked.usage == plain.usage
    metrics = httpx.get(f"{url}/metrics").text
    assert "agentprm_policy_degraded_total 2.0" in metrics

    # Whoever has patience, as training has, gets scores once there is a PRM again.
    with ThreadPoolExecutor(1) as threads, PolicyClient(url) as patient:
        waiting = threads.submit(patient.act, ActRequest(states=[STATE], n=4, prm=True))
        time.sleep(1)
        assert not waiting.done()
        start_prm(machine, registry, int(machine.url("prm").rpartition(":")[2]))
        assert waiting.result(120).prm_version == "prm/0"


def extra(answer: Any, field: str) -> Any:
    """A field that OpenAI's types do not know."""
    return getattr(answer, field)


def contents(completion: ChatCompletion) -> list[str | None]:
    return [choice.message.content for choice in completion.choices]
