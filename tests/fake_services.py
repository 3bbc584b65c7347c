"""Small real HTTP services for tests: three rooms in a row, and a policy that walks through them.

The agent wins in the easternmost room. The policy goes east with a probability of 0.7; its
candidates' q are 0.9 for `go east`, 0.1 for `go west`, and equal in fog.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Response

from agentprm import request_id
from agentprm.protocol import (
    CONTEXT_TOO_LONG,
    Action,
    ActRequest,
    ActResponse,
    ActResult,
    Candidate,
    CreateSessions,
    Game,
    GameList,
    Health,
    LoadCheckpoint,
    Loaded,
    Problem,
    Session,
    SessionIds,
    SessionList,
    Split,
    State,
    StepResult,
    StepResults,
    StepSessions,
)
from agentprm.service import ProblemError, create_app, json_response

EAST, WEST = "go east", "go west"
LAST_ROOM = 2
PAGE = 3
"""Games that the environment lists at once."""


@dataclass
class Rooms:
    """The environment. `step_seconds` makes a call to step last; `broken` games refuse to step."""

    step_seconds: float = 0.0
    broken: set[str] = field(default_factory=set)
    sessions: dict[str, Session] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    steps: int = 0
    request_ids: set[str | None] = field(default_factory=set)
    stepping: threading.Event = field(default_factory=threading.Event)

    def app(self) -> FastAPI:
        details = {"engine": "rooms", "engine_version": "3", "data_version": "none"}
        app = create_app(
            "env",
            lambda: Health(service="env", status="healthy", package_version="0", details=details),
        )

        @app.get("/v1/games")
        def games(offset: int = 0) -> Response:
            found = [_game(f"train/{letter}/1") for letter in "abcd"]
            page = found[offset : offset + PAGE]
            return json_response(GameList(games=page, total=len(found)))

        @app.post("/v1/sessions")
        def create(body: CreateSessions) -> Response:
            self.request_ids.add(request_id.current())
            for old in self.keys.pop(body.key or "", []):
                self.sessions.pop(old, None)
            made = [self._new(game, body.max_steps or 30) for game in body.games or []]
            for k, prefix in enumerate(body.prefixes or []):
                for turn, command in enumerate(prefix):
                    reached = self._step(made[k].id, turn, command).session
                    assert reached is not None
                    made[k] = reached
            if body.key:
                self.keys[body.key] = [session.id for session in made]
            return json_response(SessionList(sessions=made))

        @app.post("/v1/sessions/expert")
        def expert(body: SessionIds) -> Response:
            asked = [self._with_expert(self.sessions[i]) for i in body.ids]
            return json_response(SessionList(sessions=asked))

        @app.post("/v1/sessions/close")
        def close(body: SessionIds) -> Response:
            for session_id in body.ids:
                self.sessions.pop(session_id, None)
            return json_response(body)

        @app.post("/v1/steps")
        def step(body: StepSessions) -> Response:
            self.stepping.set()
            time.sleep(self.step_seconds)
            self.steps += 1
            results = [self._step(s.id, s.turn, s.command) for s in body.steps]
            if body.expert:
                results = [
                    r.model_copy(update={"session": r.session and self._with_expert(r.session)})
                    for r in results
                ]
            return json_response(StepResults(results=results))

        return app

    def _new(self, game: str, max_steps: int) -> Session:
        session = Session(
            id=uuid.uuid4().hex,
            game=_game(game),
            turn=0,
            observation="You are in room 0.",
            admissible=[EAST, WEST],
            reward=0.0,
            done=False,
            won=False,
            truncated=False,
            max_steps=max_steps,
        )
        self.sessions[session.id] = session
        return session

    def _with_expert(self, session: Session) -> Session:
        return session.model_copy(update={"expert": Action(reason="east it is", command=EAST)})

    def _step(self, session_id: str, turn: int, command: str) -> StepResult:
        before = self.sessions.get(session_id)
        if before is None or before.turn != turn or before.game.id in self.broken:
            problem = Problem(title="No such turn", status=404)
            return StepResult(id=session_id, problem=problem)
        room = int(before.observation.split()[-1].rstrip("."))
        room = room + 1 if command == EAST else max(0, room - 1)
        won = room == LAST_ROOM
        out_of_steps = turn + 1 >= before.max_steps
        after = before.model_copy(
            update={
                "turn": turn + 1,
                "observation": f"You are in room {room}.",
                "reward": float(won),
                "won": won,
                "done": won or out_of_steps,
                "truncated": out_of_steps and not won,
            }
        )
        self.sessions[session_id] = after
        return StepResult(id=session_id, session=after)


def _game(name: str) -> Game:
    return Game(id=name, split=Split.TRAIN, task_type="walk", task="go to room 2")


@dataclass
class Walker:
    """The policy. While `loading`, health and acts are 503. `beta` is that of the last request.

    States of more than `longest` turns are refused as too long for the model.
    """

    version: str = "policy/0"
    prm_version: str = "prm/0"
    loading: bool = False
    beta: float = 0.0
    longest: int = 30

    def app(self) -> FastAPI:
        app = create_app("policy", self._health)

        @app.post("/v1/act")
        def act(body: ActRequest) -> Response:
            if self.loading:
                raise ProblemError(503, "Loading", retry_after=1)
            self.beta = body.beta
            if any(len(state.history) > self.longest for state in body.states):
                raise ProblemError(422, CONTEXT_TOO_LONG)
            results = [self._act(body, i, state) for i, state in enumerate(body.states)]
            answer = ActResponse(
                results=results,
                policy_version=self.version,
                prm_version=self.prm_version if body.prm else None,
                template_hash="0" * 8,
            )
            return json_response(answer)

        @app.post("/v1/checkpoints/load")
        def load(body: LoadCheckpoint) -> Response:
            previous, self.version = self.version, body.version
            return json_response(
                Loaded(version=body.version, previous=previous, load_seconds=0, pause_seconds=0)
            )

        return app

    def _health(self) -> Health:
        status = "loading" if self.loading else "healthy"
        return Health(service="policy", status=status, package_version="0", version=self.version)

    def _act(self, body: ActRequest, i: int, state: State) -> ActResult:
        rng = random.Random(f"{body.seed}/{i}")
        commands = [EAST if rng.random() < 0.7 else WEST for _ in range(body.n)]
        if len(state.admissible) == 1:
            commands = list(state.admissible) * body.n
        candidates = []
        for command in dict.fromkeys(commands):
            q = None
            if body.prm:
                q = 0.5 if "fog" in state.observation else 0.9 if command == EAST else 0.1
            candidates.append(
                Candidate(
                    text=command,
                    action=Action(reason=f"{command} is a way", command=command),
                    log_prob=-0.5,
                    tokens=3,
                    count=commands.count(command),
                    q=q,
                )
            )
        chosen = max(range(len(candidates)), key=lambda k: candidates[k].q or 0.0)
        return ActResult(candidates=candidates, chosen=chosen)


@contextlib.contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The app behind a real server, on a free port unless one is given; its URL."""
    config = uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
