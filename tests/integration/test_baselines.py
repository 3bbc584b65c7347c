"""Controls and baselines against real services: environment, policy and Redis."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import Response
from fastapi.responses import JSONResponse
from rich.console import Console

from agentprm.client import EnvClient, PolicyClient, PRMClient, ServiceError
from agentprm.config import Algorithm, Config, changed
from agentprm.facts import METADATA
from agentprm.prompts import load_prompt, parse_action
from agentprm.protocol import (
    ActRequest,
    ActResult,
    ChoiceRule,
    CreateSessions,
    Episode,
    Health,
    RolloutJob,
    Sampling,
)
from agentprm.queue import Queue
from agentprm.redis_server import RedisServer
from agentprm.results import Row, read_results, write_results
from agentprm.service import create_app
from services.rollout.chat import ChatModel
from services.rollout.game import PlayError
from services.rollout.player import Player
from services.trainer.baselines import LOOPS
from services.trainer.loop import Loop
from services.trainer.metrics import MetricsWriter
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Services
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.records import Records
from tests.env_server import KITCHEN
from tests.fake_services import EAST, Rooms, Walker, serving
from tests.integration.conftest import ADMIN, READ, Guarded
from tests.states import STATE
from tests.unit.trainer_episodes import create_small
from tests.workers import working

SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPRM_API_KEY", ADMIN)
    monkeypatch.setenv("OPENAI_API_KEY", READ)


def play(guarded: Guarded, chat: ChatModel | None = None, **fields: Any) -> list[Episode]:
    given = {"id": "j", "games": [KITCHEN, KITCHEN], "seed": 5, "max_steps": 3} | fields
    job = RolloutJob(policy_version=given.pop("policy", "policy/0"), sampling=SAMPLING, **given)
    player = Player(guarded.urls["env"], guarded.urls["policy"], chat=chat)
    return player.play(job).episodes


def turn_seed(turn: int) -> int:
    return random.Random(f"5/{turn}").getrandbits(31)


def asked_again(guarded: Guarded, episodes: list[Episode], turn: int) -> list[ActResult]:
    """What the policy drew in a turn of all episodes."""
    states = [episode.state(turn) for episode in episodes]
    request = ActRequest(states=states, n=8, sampling=SAMPLING, seed=turn_seed(turn))
    with PolicyClient(guarded.urls["policy"]) as policy:
        return policy.act(request).results


def test_the_majority_of_what_the_policy_drew_is_played(guarded: Guarded) -> None:
    episodes = play(guarded, best_of=8, choice=ChoiceRule.MAJORITY)
    for turn in range(3):
        results = asked_again(guarded, episodes, turn)
        for episode, result in zip(episodes, results, strict=True):
            samples = [c.action.command for c in result.candidates for _ in range(c.count)]
            most = Counter(samples).most_common(1)[0][1]
            assert samples.count(episode.turns[turn].action.command) == most
            assert (episode.turns[turn].q, episode.turns[turn].prm_version) == (None, None)
    provenance = episodes[0].provenance
    assert (provenance.best_of, provenance.choice) == (8, ChoiceRule.MAJORITY)


def test_chance_plays_some_of_what_the_policy_drew_and_repeats_it(guarded: Guarded) -> None:
    episodes = play(guarded, best_of=8, choice=ChoiceRule.RANDOM)
    for turn in range(3):
        results = asked_again(guarded, episodes, turn)
        for episode, result in zip(episodes, results, strict=True):
            assert episode.turns[turn].action in [c.action for c in result.candidates]
    assert play(guarded, best_of=8, choice=ChoiceRule.RANDOM) == episodes
    assert play(guarded, best_of=8, choice=ChoiceRule.RANDOM, seed=6) != episodes


def test_labels_are_what_the_expert_would_do_in_the_learners_states(guarded: Guarded) -> None:
    episodes = play(guarded, labelled=True)
    with EnvClient(guarded.urls["env"]) as env:
        for episode in episodes:
            commands = [turn.action.command for turn in episode.turns]
            for t, turn in enumerate(episode.turns):
                create = CreateSessions(
                    games=[KITCHEN], prefixes=[commands[:t]], seed=episode.seed, key="again"
                )
                [session] = env.experts([s.id for s in env.create(create)])
                assert turn.expert == session.expert is not None
                env.close_sessions([session.id])
    assert any(turn.expert != turn.action for episode in episodes for turn in episode.turns)
    assert all(turn.expert is None for episode in play(guarded) for turn in episode.turns)


def test_a_chat_model_plays_by_our_prompt(guarded: Guarded) -> None:
    prompt, url = load_prompt("chat"), guarded.urls["policy"] + "/v1"
    chat = ChatModel(url, prompt)
    episodes = play(guarded, chat, actor="chat", policy="policy", max_steps=2)
    for k, episode in enumerate(episodes):
        assert episode.provenance.template_hash == prompt.hash
        for t, turn in enumerate(episode.turns):
            body = {
                "model": "policy",
                "messages": [message.model_dump() for message in prompt.messages(episode.state(t))],
                "temperature": 1.0,
                "max_tokens": 12,
                "seed": turn_seed(t) + k,
            }
            headers = {"Authorization": f"Bearer {READ}"}
            answer = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=60)
            text = answer.json()["choices"][0]["message"]["content"]
            assert turn.action == parse_action(text)[0]
            assert (turn.policy_version, turn.log_prob) == ("policy/0", None)


def test_a_chat_model_that_cannot_be_asked_fails_the_job(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlayError, match="started without --chat-url"):
        play(guarded, actor="chat", policy="policy")
    monkeypatch.delenv("OPENAI_API_KEY")
    chat = ChatModel(guarded.urls["policy"] + "/v1", load_prompt("chat"))
    with pytest.raises(ServiceError, match="401"):
        play(guarded, chat, actor="chat", policy="policy")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"message": "too long", "code": "context_length_exceeded"}),
        (400, {"message": "This model's maximum context length is 4096 tokens.", "code": 400}),
    ],
)
def test_a_game_too_long_for_a_chat_model_is_lost_and_no_other(
    guarded: Guarded, status: int, error: dict[str, Any]
) -> None:
    app = create_app("chat", lambda: Health(service="chat", status="healthy", package_version="0"))
    asked: list[int] = []

    @app.post("/chat/completions")
    def complete(body: dict[str, Any]) -> Response:
        asked.append(len(body["messages"]))
        if len(body["messages"]) > 3 and body["seed"] % 2:  # one of two games that began alike
            return JSONResponse({"error": error}, status)
        return a_look()

    with serving(app) as url:
        chat = ChatModel(url, load_prompt("chat"))
        lost, played = sorted(
            play(guarded, chat, actor="chat", policy="m"), key=lambda each: len(each.turns)
        )
    assert (len(lost.turns), lost.won) == (1, False)
    assert len(played.turns) == 3


def a_look() -> Response:
    """An answer of OpenAI's with an action."""
    message = {"role": "assistant", "content": "REASON: none\nACTION: look"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    answer = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
    return JSONResponse(answer | {"choices": [choice]})


@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        ({}, {"max_tokens": 12, "temperature": 0.5}),
        (
            {"max_tokens": "unsupported_parameter"},
            {"max_completion_tokens": 12, "temperature": 0.5},
        ),
        (
            {"max_tokens": "unsupported_parameter", "temperature": "unsupported_value"},
            {"max_completion_tokens": 12},
        ),
        ({"temperature": "unsupported_parameter"}, {"max_tokens": 12}),
    ],
)
def test_a_model_that_does_not_take_an_option_is_asked_without_it(
    refused: dict[str, str], sent: dict[str, Any]
) -> None:
    """As OpenAI's reasoning models are."""
    app = create_app("chat", lambda: Health(service="chat", status="healthy", package_version="0"))
    asked: list[dict[str, Any]] = []

    @app.post("/chat/completions")
    def complete(body: dict[str, Any]) -> Response:
        asked.append(body)
        if body["model"] == "m" and (option := next((o for o in refused if o in body), None)):
            error = {"message": "not with this model", "type": "invalid_request_error"}
            return JSONResponse({"error": error | {"param": option, "code": refused[option]}}, 400)
        return a_look()

    sampling = Sampling(max_tokens=12, temperature=0.5)
    with serving(app) as url:
        chat = ChatModel(url, load_prompt("chat"))
        for turn in range(2):  # it is remembered
            [answer] = chat.act("m", [STATE], sampling, seed=turn)
            assert answer is not None
            assert answer.action.command == "look"
        chat.act("another", [STATE], sampling, seed=2)
    assert [body["seed"] for body in asked] == [0] * (len(refused) + 1) + [1, 2]
    messages = [message.model_dump() for message in load_prompt("chat").messages(STATE)]
    for body in asked[len(refused) : -1]:
        assert body == {"model": "m", "messages": messages, "seed": body["seed"]} | sent
    assert asked[-1].items() >= {"max_tokens": 12, "temperature": 0.5}.items()


@pytest.mark.parametrize("param", ["seed", "max_tokens"])
def test_an_option_that_is_refused_all_the_same_fails_the_job(param: str) -> None:
    app = create_app("chat", lambda: Health(service="chat", status="healthy", package_version="0"))
    asked: list[dict[str, Any]] = []

    @app.post("/chat/completions")
    def complete(body: dict[str, Any]) -> Response:
        asked.append(body)
        error = {"message": f"no {param}", "param": param, "code": "unsupported_parameter"}
        return JSONResponse({"error": error}, 400)

    with serving(app) as url, pytest.raises(ServiceError, match=f"no {param}"):
        ChatModel(url, load_prompt("chat")).act("m", [STATE], SAMPLING, seed=0)
    assert len(asked) == (2 if param == "max_tokens" else 1)


# --- baselines that train -------------------------------------------------------------------------


def config(model: Path, algorithm: Algorithm) -> Config:
    return Config.model_validate(
        {
            "preset": "baselines",
            "algorithm": algorithm,
            "model": str(model),
            "max_steps": 6,
            "iterations": 2,
            "demonstrations": {"games": 4},
            "rollouts": {"games": 3, "per_game": 2},
            "preferences": {"pairs": 5, "per_game": 3},
            "evaluation": {"games": 2},
            "sft": {"epochs": 1, "batch_tokens": 2000},
            "prm": {"epochs": 3},
        }
    )


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path / "redis"))
        env = stack.enter_context(serving(Rooms().app()))
        policy = stack.enter_context(serving(Walker().app()))
        stack.enter_context(working(redis.url, Player(env, policy)))
        yield Services(
            stack.enter_context(EnvClient(env)),
            Fleet([stack.enter_context(PolicyClient(policy))]),
            Fleet([stack.enter_context(PRMClient(policy))]),
            stack.enter_context(Queue(redis.url, "run")),
        )


@pytest.mark.parametrize("algorithm", [Algorithm.SFT, Algorithm.DAGGER])
def test_a_baseline_trains_and_gives_the_rows_of_the_loop(
    tmp_path: Path, services: Services, algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    def watched(run: Path, rows: Sequence[Row]) -> None:
        write_results(run, rows)
        lengths.append(len(read_results(run)))

    monkeypatch.setattr("services.trainer.loop.write_results", watched)
    settings, quiet = config(create_small(tmp_path), algorithm), Progress(Console(quiet=True))
    records = Records(tmp_path / "records")
    with MetricsWriter(tmp_path) as metrics:
        loop: Loop = LOOPS[algorithm](
            tmp_path, settings, services, records, load_prompt("chat"), metrics, quiet
        )
        rows = loop.train()
    assert lengths == [1, 2, 3], "the table is there from the first row on"
    assert [(row.policy, row.prm, row.games) for row in rows] == [
        ("pi_0", None, 2),
        ("pi_1", None, 2),
        ("pi_2", None, 2),
    ]
    facts = [
        orjson.loads((loop.registry.open(f"policy/{i}") / METADATA).read_bytes()) for i in range(3)
    ]
    if algorithm is Algorithm.SFT:
        # 3 passes over 6 episodes are as many as 5 over the 4 demonstrations, rounded up
        assert [f["settings"]["epochs"] for f in facts] == [1, 5, 5]
        assert not records.episodes("pi_0-rollouts")
        return
    # 4 demonstrations, and 5 labelled states for each set of rollouts up to then
    assert [f["metrics"]["rows"] for f in facts] == [4, 9, 14]
    for i in range(2):
        for episode in records.episodes(f"pi_{i}-rollouts"):
            assert {turn.expert and turn.expert.command for turn in episode.turns} == {EAST}
    games = {episode.game.id for episode in records.rollouts(0, 1)}
    assert len(games) == 4, "the second goes on where the first, with three games, has ended"


def test_fine_tuning_on_what_was_won_has_no_prm(tmp_path: Path, services: Services) -> None:
    settings = changed(
        config(create_small(tmp_path), Algorithm.AGENT_PRM),
        {"update": "outcome-rejection", "rollouts.vine.states": 2, "rejection.batch_tokens": 2000},
    )
    records, quiet = Records(tmp_path / "records"), Progress(Console(quiet=True))
    with MetricsWriter(tmp_path) as metrics:
        loop = Loop(tmp_path, settings, services, records, load_prompt("chat"), metrics, quiet)
        rows = loop.train()
    assert [(row.policy, row.prm) for row in rows] == [(f"pi_{i}", None) for i in range(3)]
    assert loop.registry.versions("prm") == []
    assert records.episodes("pi_0-rollouts")
    assert not records.episodes("pi_0-vine")
