"""Look-ahead through the rollout worker's player: in copies of sessions, and in a world model."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response

from agentprm.client import EnvClient, PolicyClient
from agentprm.planned import summarise_planned
from agentprm.protocol import (
    CONTEXT_TOO_LONG,
    Action,
    ActRequest,
    ActResponse,
    ActResult,
    Candidate,
    CompletionRequest,
    CreateSessions,
    Episode,
    Health,
    Lookahead,
    RolloutJob,
    Split,
    State,
)
from agentprm.service import ProblemError, create_app, json_response
from agentprm.world import Outcome, WorldModel, answered, opening, outcome_text
from services.env.engine.compiled import CompiledGame
from services.rollout.planning import LearnedModel, Model, TrueModel, look_ahead
from services.rollout.player import Player
from tests.env_server import EnvServer
from tests.fake_services import serving

WORLD, POLICY, PRM = "world/0", "policy/0", "prm/0"


def hashed(*parts: object) -> float:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) / 2**32


def policy(longest: int = 99) -> FastAPI:
    """It draws from the admissible commands; Q is a hash of what led here, so no two are equal.

    States of more than `longest` turns are too long for it.
    """
    app = create_app(
        "policy",
        lambda: Health(service="policy", status="healthy", package_version="0", version=POLICY),
    )

    def drawn(state: State, n: int, key: str) -> ActResult:
        rng = random.Random(key)
        commands = dict.fromkeys(rng.choice(state.admissible) for _ in range(n))
        past = [step.action.command for step in state.history]
        return ActResult(
            candidates=[
                Candidate(
                    text=command,
                    action=Action(command=command),
                    log_prob=-1.0,
                    tokens=1,
                    q=hashed(state.task, past, state.observation, command),
                )
                for command in commands
            ],
            chosen=0,
        )

    @app.post("/v1/act")
    def act(body: ActRequest) -> Response:
        if any(len(state.history) > longest for state in body.states):
            raise ProblemError(422, CONTEXT_TOO_LONG)
        results = [drawn(s, body.n, f"{body.seed}/{k}") for k, s in enumerate(body.states)]
        return json_response(
            ActResponse(
                results=results, policy_version=POLICY, prm_version=PRM, template_hash="0" * 12
            )
        )

    return app


def oracle(data: Path, games: Sequence[str]) -> FastAPI:
    """A world model that is never wrong: it plays the commands it was told in the game itself."""
    parsed = [CompiledGame.parse(data / "json_2.1.1" / game / "game.tw-pddl") for game in games]
    firsts = {game.reset().observation: game for game in parsed}
    app = create_app(
        "world",
        lambda: Health(service="policy", status="healthy", package_version="0", version=WORLD),
    )

    @app.post("/v1/chat/completions")
    def complete(body: CompletionRequest) -> dict[str, Any]:
        assert body.model == WORLD
        told = [message.content for message in body.messages if message.role == "user"]
        first, _, command = told[0].partition("\n\nACTION: ")
        commands = [command, *(text.removeprefix("ACTION: ") for text in told[1:])]
        state = firsts[first].reset()
        for command in commands:
            before = state.admissible
            state.step(command)
        outcome = Outcome(state.observation, state.won, tuple(state.admissible))
        message = {"role": "assistant", "content": outcome_text(outcome, before), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "1", "object": "chat.completion", "model": WORLD, "choices": [choice]}

    return app


@pytest.fixture(scope="module")
def env(alfworld_data: Path) -> Iterator[EnvServer]:
    server = EnvServer("--data", str(alfworld_data))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def games(env: EnvServer) -> list[str]:
    """Three, of different rooms: the oracle knows a game by its first observation."""
    return [game.id for game in env.client.games(Split.TRAIN).games[::1000][:3]]


def job(games: list[str], plan: Lookahead) -> RolloutJob:
    return RolloutJob(
        id="plan-0000",
        games=games,
        seed=5,
        policy_version=POLICY,
        prm_version=PRM,
        lookahead=plan,
        max_steps=6,
    )


def plan(depth: int, world: str | None = None, **more: Any) -> Lookahead:
    model = "true" if world is None else "learned"
    values = {"depth": depth, "width": 3, "gamma": 0.9, "model": model, "world_version": world}
    return Lookahead.model_validate({**values, **more})


def same(episodes: Sequence[Episode]) -> list[Any]:
    """What of episodes must not hang on the model."""
    return [episode.model_dump(exclude={"provenance"}) for episode in episodes]


@pytest.mark.games
@pytest.mark.parametrize("shape", ["tree", "plans"])
def test_in_a_perfect_model_the_search_does_as_in_the_game_itself(
    env: EnvServer, games: list[str], alfworld_data: Path, shape: str
) -> None:
    """It also reaches the step limit: the last turns have fewer than `depth` left."""
    with serving(policy()) as acts, serving(oracle(alfworld_data, games)) as world:
        player = Player(env.url, acts, world_url=world)
        true = player.play(job(games, plan(3, shape=shape))).episodes
        learned = player.play(job(games, plan(3, WORLD, shape=shape))).episodes
        shallow = player.play(job(games, plan(1))).episodes
    assert same(true) == same(learned)
    assert same(true) != same(shallow)
    searches = [turn.search for episode in learned for turn in episode.turns]
    assert all(search and search.transitions and search.unknown == 0 for search in searches)
    assert learned[0].provenance.lookahead == plan(3, WORLD, shape=shape)
    row = summarise_planned(learned, policy="pi_0", prm="q_0", max_steps=6, seed=0)
    assert row.name == f"learned {shape} 3x3(pi_0, q_0)"
    assert row.transitions == pytest.approx(
        sum(search.transitions for search in searches if search) / len(searches)
    )


@pytest.mark.games
def test_the_sessions_themselves_are_not_touched(env: EnvServer, games: list[str]) -> None:
    before = env.client.create(CreateSessions(games=games, max_steps=9))
    open_sessions = sessions(env.client)

    def act(states: list[State], n: int, seed: int) -> ActResponse:
        request = ActRequest(states=states, n=n, prm=True, seed=seed)
        return client.act(request)

    with serving(policy()) as acts, PolicyClient(acts) as client:
        model: Model[str] = TrueModel(env.client)
        roots = [(session, ()) for session in before]
        choices, _ = look_ahead(roots, plan(3), model, act, seed=1)
    assert all(choice.search.transitions > 3 for choice in choices)
    assert sessions(env.client) == open_sessions  # the copies are closed
    for session in before:
        assert env.client.fork(session.id)[0].model_copy(update={"id": session.id}) == session


@pytest.mark.games
def test_copies_are_closed_also_where_a_search_fails(env: EnvServer, games: list[str]) -> None:
    before = env.client.create(CreateSessions(games=games, max_steps=9))
    open_sessions = sessions(env.client)
    asked = 0

    def act(states: list[State], n: int, seed: int) -> ActResponse:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise TimeoutError
        return client.act(ActRequest(states=states, n=n, prm=True, seed=seed))

    with serving(policy()) as acts, PolicyClient(acts) as client, pytest.raises(TimeoutError):
        look_ahead([(s, ()) for s in before], plan(3), TrueModel(env.client), act, seed=1)
    assert sessions(env.client) == open_sessions


@pytest.mark.games
def test_what_is_too_long_ends_a_branch_and_then_that_game(
    env: EnvServer, games: list[str]
) -> None:
    """Beyond the policy's length the tree has no states, so that its last turn is Best-of-N."""
    with serving(policy(longest=3)) as acts, serving(policy()) as unlimited:
        deep = Player(env.url, acts).play(job(games, plan(3))).episodes
        free = Player(env.url, unlimited).play(job(games, plan(3))).episodes
    for episode, other in zip(deep, free, strict=True):
        assert len(episode.turns) == 4  # a state of four turns is none that it can act in
        assert not episode.won
        assert episode.turns[:2] == other.turns[:2]  # all of these trees fit
        search = episode.turns[3].search
        assert search is not None
        assert search.value == episode.turns[3].q


def sessions(client: EnvClient) -> Any:
    return client.health().details["sessions"]


@pytest.mark.games
def test_depth_one_is_best_of_n(env: EnvServer, games: list[str]) -> None:
    """The fake policy does not choose; the best by Q is taken here."""
    with serving(policy()) as acts:
        player = Player(env.url, acts)
        (episode,) = player.play(job(games[:1], plan(1))).episodes
        with PolicyClient(acts) as client:
            for t, turn in enumerate(episode.turns):
                seed = random.Random(f"5/{t}").getrandbits(31)
                request = ActRequest(states=[episode.state(t)], n=3, prm=True, seed=seed)
                (result,) = client.act(request).results
                best = max(result.candidates, key=lambda candidate: candidate.q or 0.0)
                assert turn.action == best.action
                assert turn.q == best.q
                assert turn.search is not None
                assert (turn.search.value, turn.search.transitions) == (best.q, 0)


def test_an_answer_that_is_cut_off_or_asked_for_too_much_tells_nothing() -> None:
    app = create_app("w", lambda: Health(service="w", status="healthy", package_version="0"))

    @app.post("/v1/chat/completions")
    def complete(body: CompletionRequest) -> Response:
        if len(body.messages) > 2:
            return Response('{"error": {"code": "context_length_exceeded"}}', 400)
        cut = '{"finish_reason": "length", "message": {"role": "assistant", "content": "You"}}'
        return Response(f'{{"model": "w", "choices": [{cut}]}}')

    told = opening("put a mug in shelf.", "You see a shelf 1.")
    with serving(app) as url, PolicyClient(url) as client:
        model = WorldModel(client, WORLD)
        assert model.answers([(told, "look"), (answered(told, "look", "Shelf."), "look")]) == [
            None,
            None,
        ]
        assert LearnedModel(model).step([]) == []
