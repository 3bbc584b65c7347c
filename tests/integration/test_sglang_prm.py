"""The PRM service on real SGLang servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from agentprm.models.replicas import Replicas
from agentprm.models.sglang import RESERVED
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Choice, Message, Pair, ScoreRequest, State, Transcript
from agentprm.registry import Registry
from agentprm.service import ProblemError
from services.prm.app import build_app
from services.prm.settings import PRMServiceSettings
from services.prm.sglang import SGLangScorer
from tests.scorers import episode, tiny_scorer
from tests.sglang_server import SGLangServer

PROMPT = load_prompt("chat")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """prm/0 and prm/1 differ; prm/2 is of another shape; the scores of prm/3 are no numbers."""
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    for k in range(4):
        with registry.write(f"prm/{k}") as draft:
            tiny_scorer(draft, seed=k, width=48 if k == 2 else 32)
            if k == 3:
                model = AutoModelForSequenceClassification.from_pretrained(draft)
                with torch.no_grad():
                    model.score.weight.fill_(float("nan"))
                model.save_pretrained(draft)
    return registry


@pytest.fixture(scope="module")
def servers(registry: Registry) -> Iterator[list[str]]:
    """Two replicas, started on prm/0."""
    started = [SGLangServer(registry.path("prm/0"), "--is-embedding") for _ in range(2)]
    try:
        yield [server.wait().url for server in started]
    finally:
        for server in started:
            server.stop()


def in_turns(played: Transcript) -> Iterator[tuple[State, Action]]:
    """Every state with the action taken in it."""
    for t, step in enumerate(played.steps):
        history = tuple(played.steps[:t])
        state = State(task=played.task, history=history, observation=step.observation)
        yield state, step.action


def requests() -> list[ScoreRequest]:
    """A whole episode; actions in one of its states; turns one by one."""
    played = episode(20, 3)
    turns = list(in_turns(played))
    state, _ = turns[7]
    actions = [action for _, action in turns[:6]]
    return [
        ScoreRequest(transcripts=[played]),
        ScoreRequest(choices=[Choice(state=state, actions=actions)]),
        ScoreRequest(pairs=[Pair(state=state, action=action) for state, action in turns[:3]]),
    ]


def expected(path: Path) -> list[list[float]]:
    """What transformers itself says of `requests`."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    turns = list(in_turns(episode(20, 3)))

    def plain(state: State, action: Action) -> float:
        answer = Message(role="assistant", content=PROMPT.action_text(action))
        messages = [m.model_dump() for m in [*PROMPT.messages(state), answer]]
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            return float(model(input_ids=ids["input_ids"]).logits.sigmoid())

    return [
        [plain(state, action) for state, action in turns],
        [plain(turns[7][0], action) for _, action in turns[:6]],
        [plain(state, action) for state, action in turns[:3]],
    ]


def test_scores_equal_plain_transformers_before_and_after_swaps(
    registry: Registry, servers: list[str]
) -> None:
    settings = PRMServiceSettings(
        registry=registry.root, checkpoint="prm/0", engine="sglang", engine_url=servers
    )
    right = {version: expected(registry.path(version)) for version in ("prm/0", "prm/1")}
    assert max(abs(a - b) for a, b in zip(*[r[0] for r in right.values()], strict=True)) > 0.01

    async def main() -> None:
        app = build_app(settings)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://prm", timeout=60) as client,
        ):

            async def load(version: str) -> httpx.Response:
                return await client.post("/v1/checkpoints/load", json={"version": version})

            async def score(request: ScoreRequest) -> tuple[str, list[float]]:
                answer = await client.post("/v1/score", json=request.model_dump(mode="json"))
                body = answer.raise_for_status().json()
                first = [*body["transcripts"], *body["choices"], body["pairs"]][0]
                return body["prm_version"], first

            async def every() -> None:
                answers = await asyncio.gather(*map(score, requests() * 3))
                for k, (version, found) in enumerate(answers):
                    assert found == pytest.approx(right[version][k % 3], abs=1e-3)

            health = (await client.get("/health")).json()["details"]
            assert (health["engine"], health["replicas_ready"]) == ("sglang", 2)
            await every()
            for k in range(1, 4):
                loaded, *_ = await asyncio.gather(load(f"prm/{k % 2}"), every(), every())
                assert loaded.json()["version"] == f"prm/{k % 2}"
                await every()
            for version, reason in (("prm/2", "was started with"), ("prm/3", "not finite")):
                refused = await load(version)
                assert refused.status_code == 409, refused.text
                assert reason in refused.json()["detail"]
                assert (await score(requests()[0]))[0] == "prm/1"
                await every()

    asyncio.run(main())


def test_beginnings_are_read_once_and_lengths_are_those_of_the_server(
    registry: Registry, servers: list[str]
) -> None:
    replicas = Replicas(servers[:1])
    scorer = SGLangScorer(registry.path("prm/0"), PROMPT, replicas)
    replicas.put(scorer)
    scorer.check()
    asked: list[int] = []
    classify = replicas.classify

    def watched(sequences: list[list[int]], tag: str, homes: list[int]) -> object:
        asked.append(len(sequences))
        return classify(sequences, tag, homes)

    replicas.classify = watched  # type: ignore[method-assign, assignment]
    for request, rounds in zip(requests(), ([1, 19], [1, 5], [1, 2]), strict=True):
        asked.clear()
        scorer.score(scorer.plan(request).rows)
        assert asked == rounds
    asked.clear()
    apart = ScoreRequest(transcripts=[episode(1, seed) for seed in (1, 2, 3)])
    scorer.score(scorer.plan(apart).rows)
    assert asked == [3]

    assert scorer.max_tokens == 1024 - RESERVED
    row = scorer.plan(ScoreRequest(transcripts=[episode(31)])).rows[0]
    assert len(row) < 1024 - RESERVED
    longest = [1] * (1024 - RESERVED)
    [[q]] = scorer.score([type(row)(longest, [len(longest) - 1], len(longest))])
    assert 0 < q < 1
    with pytest.raises(ProblemError, match="the model reads 1018"):
        scorer.plan(ScoreRequest(transcripts=[episode(40)]))
    replicas.close()
