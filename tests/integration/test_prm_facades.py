"""The PRM through the clients and in the shapes of others, against a real process."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cohere
import httpx
import pytest
from cohere.core import ApiError
from openai.types.chat import ChatCompletionMessage
from transformers import AutoTokenizer

from agentprm.client import AsyncPRMClient, PRMClient
from agentprm.protocol import Action, Choice, ModelCard, ScoreRequest, State
from agentprm.registry import Registry
from tests.scorers import tiny_scorer
from tests.servers import prm_server

QUERY = "you are in the middle of a room . you see a mug 1 ."
DOCUMENTS = [f"take mug {k}" for k in range(70)]
REASONED = "REASON: find mug\nACTION: go to shelf 1"
CHAT = [
    {"role": "user", "content": QUERY},
    {"role": "assistant", "content": REASONED},
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    with registry.write("prm/0") as draft:
        tiny_scorer(draft, seed=0)
    return registry


@pytest.fixture(scope="module")
def url(registry: Registry) -> Iterator[str]:
    with prm_server(registry, "--checkpoint", "prm/0") as (_, url):
        yield url


@pytest.fixture(scope="module")
def q(url: str) -> list[float]:
    """What /v1/score says of the documents as actions, and of the reasoned one."""
    state = State(task="", observation=QUERY)
    actions = [Action(command=text) for text in DOCUMENTS]
    reasoned = Action(reason="find mug", command="go to shelf 1")
    with PRMClient(url) as prm:
        answer = prm.score(
            ScoreRequest(
                choices=[
                    Choice(state=state, actions=actions[:40]),
                    Choice(state=state, actions=[*actions[40:], reasoned]),
                ]
            )
        )
    return [*answer.choices[0], *answer.choices[1]]


def test_coheres_client_ranks_actions_by_q(url: str, q: list[float]) -> None:
    documents = [*DOCUMENTS, REASONED]
    ranking = sorted(range(len(q)), key=lambda k: -q[k])
    assert len(set(q)) > 10
    with cohere.ClientV2(api_key="none", base_url=url) as client:
        answer = client.rerank(model="any", query=QUERY, documents=documents)
        few = client.rerank(model="any", query=QUERY, documents=documents, top_n=3)
    assert [r.relevance_score for r in answer.results] == pytest.approx(
        [q[k] for k in ranking], abs=1e-5
    )
    assert sorted(r.index for r in answer.results) == list(range(len(documents)))
    for result in answer.results:
        assert result.relevance_score == pytest.approx(q[result.index], abs=1e-5)
    assert [r.index for r in few.results] == [r.index for r in answer.results[:3]]


def test_the_first_version_gives_documents_back(url: str, q: list[float]) -> None:
    with cohere.Client(api_key="none", base_url=url) as client:
        answer = client.rerank(
            model="any", query=QUERY, documents=[DOCUMENTS[5], REASONED], return_documents=True
        )
    assert len(answer.results) == 2
    for result in answer.results:
        assert result.document is not None
        expected = {DOCUMENTS[5]: q[5], REASONED: q[-1]}[result.document.text]
        assert result.relevance_score == pytest.approx(expected, abs=1e-5)


def test_jinas_shape(url: str, q: list[float]) -> None:
    body = {
        "model": "jina-reranker-v2-base-multilingual",
        "query": QUERY,
        "documents": [{"text": DOCUMENTS[0]}, DOCUMENTS[1]],
        "top_n": 1,
        "return_documents": True,
    }
    answer = httpx.post(f"{url}/v1/rerank", json=body).json()
    best = max((0, 1), key=lambda k: q[k])
    assert answer["model"] == "prm/0"
    assert answer["results"] == [
        {
            "index": best,
            "relevance_score": pytest.approx(q[best], abs=1e-5),
            "document": {"text": DOCUMENTS[best]},
        }
    ]


def test_a_ranking_that_cannot_be_is_refused(url: str) -> None:
    with cohere.ClientV2(api_key="none", base_url=url) as client:
        for documents, name in ((["look", "x" * 501], "documents.1"), ([], "documents")):
            with pytest.raises(ApiError) as caught:
                client.rerank(model="any", query=QUERY, documents=documents)
            assert caught.value.status_code == 422
            assert name in caught.value.body["detail"]
    long = {"query": "mug " * 2000, "documents": ["look"]}
    answer = httpx.post(f"{url}/v1/rerank", json=long)
    assert answer.status_code == 422
    assert "tokens, the model reads 1024" in answer.json()["detail"]


def test_openrlhf_gets_a_reward_for_each_query(url: str, registry: Registry) -> None:
    """The request and the answer that OpenRLHF's `remote_rm_fn` sends and reads."""
    tokenizer = AutoTokenizer.from_pretrained(registry.path("prm/0"))
    chats = [CHAT, [*CHAT, {"role": "user", "content": "nothing happens ."}, CHAT[1]]]
    prompts = [
        tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        for chat in chats
    ]
    sent = {
        "query": [prompt + REASONED + "<|end|>" for prompt in prompts],
        "prompts": prompts,
        "labels": ["", ""],
    }
    answer = httpx.post(f"{url}/get_reward", json=sent).json()
    with PRMClient(url) as prm:
        body = {"conversations": [{"messages": chat} for chat in chats]}
        expected = prm.score(ScoreRequest.model_validate(body)).conversations
    assert answer["rewards"] == pytest.approx([turns[-1] for turns in expected], abs=1e-5)
    assert answer["rewards"][0] != pytest.approx(answer["rewards"][1], abs=1e-3)
    assert answer["scores"] == answer["rewards"]
    refused = httpx.post(f"{url}/get_reward", json={"query": ["x", ""]})
    assert refused.status_code == 422
    assert "query.1" in refused.json()["detail"]


def test_the_requests_of_the_documentation(url: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "prm-endpoint.md").read_text()
    requests = re.findall(r"curl -s http://127\.0\.0\.1:8003(\S+) .*? -d '(.*?)'\n```", text, re.S)
    answers = [httpx.post(f"{url}{path}", json=json.loads(body)) for path, body in requests]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    chat, choice, transcript = (answer.json() for answer in answers)
    assert len(chat["conversations"][0]) == 2
    assert len(choice["choices"][0]) == 2
    assert len(transcript["transcripts"][0]) == 2
    shown = json.loads(re.findall(r"```json\n(.*?)```", text, re.S)[0])
    assert shown.keys() == chat.keys()
    card = re.findall(r"```json\n(.*?)```", text, re.S)[1]
    assert ModelCard.model_validate_json(card).checkpoints[0].calibration is not None


def test_a_chat_over_http(url: str) -> None:
    answer = httpx.post(f"{url}/v1/score", json={"messages": [*CHAT, *CHAT]}).json()
    [turns] = answer["conversations"]
    assert len(turns) == 2
    assert answer["prm_version"] == "prm/0"
    refused = httpx.post(f"{url}/v1/score", json={"messages": CHAT[:1]})
    assert refused.status_code == 422
    assert "no assistant message" in refused.json()["detail"]


def test_the_simple_calls(url: str) -> None:
    state = State(task="put a mug in cabinet", observation=QUERY)
    actions = [Action(command="look"), Action(reason="find mug", command="go to shelf 1")]
    reply = ChatCompletionMessage(role="assistant", content=REASONED)
    with PRMClient(url) as prm:
        mixed = prm.score_actions(state, ["look", actions[1]])
        whole = prm.score(ScoreRequest(choices=[Choice(state=state, actions=actions)]))
        assert mixed == pytest.approx(whole.choices[0], abs=1e-5)
        chats = prm.score_conversations([CHAT, [CHAT[0], reply]])
        assert chats[0] == pytest.approx(chats[1], abs=1e-5)
        with pytest.raises(ValueError, match="no assistant message"):
            prm.score_messages(CHAT[:1])

    async def alike() -> list[float]:
        async with AsyncPRMClient(url) as prm:
            return await prm.score_messages(CHAT)

    assert asyncio.run(alike()) == pytest.approx(chats[0], abs=1e-5)
