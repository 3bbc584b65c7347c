"""OpenEnv's wire over the same sessions: `/ws`, `/reset`, `/step`, `/state`, `/mcp`, `/schema`.

OpenEnv is an interface that environments for agents share (github.com/huggingface/OpenEnv). Its
clients play over a WebSocket, an episode a connection. The plain HTTP routes and `/mcp` are there
to try a server out: they share one episode.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, Protocol, TypeVar

import orjson
from anyio import to_thread
from fastapi import APIRouter, Request, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentprm import __version__
from agentprm.protocol import MAX_STEPS, Command, CreateSessions, Seed, Session, Split, StepSession
from agentprm.service import ProblemError, json_response
from services.env.games import GameIndex
from services.env.sessions import Sessions

T = TypeVar("T")


class Run(Protocol):
    """How to call the sessions from an event loop."""

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of `call`, which is made in a thread where it may take long."""


class Play(BaseModel):
    """An action: one command of the game."""

    model_config = ConfigDict(extra="forbid")

    command: Command
    metadata: dict[str, Any] = {}


class Observation(BaseModel):
    """What the agent sees. On the wire `reward` and `done` stand beside the observation."""

    text: str
    admissible_commands: list[str]
    task: str
    turn: int
    won: bool
    reward: float
    done: bool
    metadata: dict[str, Any] = {}


class Played(BaseModel):
    """The answer to a reset or a step."""

    observation: dict[str, Any]
    reward: float
    done: bool


class State(BaseModel):
    """How far the episode is; without an id before the first reset."""

    episode_id: str | None = None
    step_count: int = 0
    game: str | None = None
    max_steps: int | None = None


class Reset(BaseModel):
    """Play `game`, or else a game of `split` that `seed` draws. Other fields are passed over."""

    seed: Seed | None = None
    episode_id: str | None = Field(default=None, max_length=255)
    game: str | None = None
    split: Split | None = None
    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)


class Step(BaseModel):
    """Play an action. Other fields are passed over."""

    action: Play


class _Message(BaseModel):
    """A frame from a client."""

    type: str
    data: dict[str, Any] = {}


class _Call(BaseModel):
    """A JSON-RPC request."""

    jsonrpc: Literal["2.0"]
    method: str
    params: dict[str, Any] = {}
    id: str | int | None = None


class Episode:
    """One game at a time, each in a session that the next reset closes."""

    def __init__(self, sessions: Sessions, index: GameIndex) -> None:
        self._sessions = sessions
        self._default_split = next((s for s in Split if index.select(s)), Split.TRAIN)
        self._key = f"openenv {uuid.uuid4().hex}"
        self._session: Session | None = None
        self._id: str | None = None

    def reset(self, request: Reset) -> Played:
        """Start a game. Raise ProblemError as `Sessions.create` does."""
        seed = random.randrange(2**31) if request.seed is None else request.seed
        (self._session,) = self._sessions.create(
            CreateSessions(
                games=None if request.game is None else [request.game],
                split=(request.split or self._default_split) if request.game is None else None,
                seed=seed,
                max_steps=request.max_steps,
                key=self._key,
            )
        )
        self._id = request.episode_id or self._session.id
        return _played(self._session)

    def step(self, action: Play) -> Played:
        """Play a command. Raise ProblemError where no game is in play or this one is over."""
        if self._session is None:
            raise ProblemError(409, "No episode", "reset before the first step")
        step = StepSession(id=self._session.id, turn=self._session.turn, command=action.command)
        (result,) = self._sessions.step([step])
        if result.problem is not None:
            raise ProblemError(result.problem.status, result.problem.title, result.problem.detail)
        assert result.session is not None
        self._session = result.session
        return _played(result.session)

    def state(self) -> State:
        """How far it is."""
        if self._session is None:
            return State()
        return State(
            episode_id=self._id,
            step_count=self._session.turn,
            game=self._session.game.id,
            max_steps=self._session.max_steps,
        )

    def close(self) -> None:
        """Give the session back."""
        if self._session is not None:
            self._sessions.close([self._session.id])


def routes(sessions: Sessions, index: GameIndex, run: Run) -> APIRouter:
    """OpenEnv's routes, in simulation mode."""
    router = APIRouter(tags=["OpenEnv"])
    shared = Episode(sessions, index)

    @router.get("/metadata")
    async def metadata() -> dict[str, str]:
        return {
            "name": "alfworld",
            "description": "ALFWorld: household tasks as text games.",
            "version": __version__,
        }

    @router.get("/schema")
    async def schema() -> dict[str, Any]:
        kinds: dict[str, type[BaseModel]] = {
            "action": Play,
            "observation": Observation,
            "state": State,
        }
        return {name: kind.model_json_schema() for name, kind in kinds.items()}

    @router.post("/reset")
    def reset(request: Reset | None = None) -> Response:
        return json_response(shared.reset(request or Reset()))

    @router.post("/step")
    async def step(request: Step) -> Response:
        return json_response(await run(lambda: shared.step(request.action)))

    @router.get("/state")
    async def state() -> Response:
        return json_response(shared.state())

    @router.post("/mcp")
    async def mcp(request: Request) -> Response:
        answer = await _call_tool(shared, await request.body(), run)
        return Response(orjson.dumps(answer), media_type="application/json")

    @router.websocket("/ws")
    async def play(socket: WebSocket) -> None:
        await socket.accept()
        episode = Episode(sessions, index)
        try:
            with suppress(WebSocketDisconnect):
                await _converse(socket, episode, run)
        finally:
            await run(episode.close)

    return router


async def _converse(socket: WebSocket, episode: Episode, run: Run) -> None:
    """Answer each frame by a frame, until the client closes."""
    while True:
        frame = await socket.receive()
        if frame["type"] == "websocket.disconnect":
            return
        answer = await _answer(episode, frame.get("text") or frame.get("bytes") or b"", run)
        if answer is None:
            await socket.close()
            return
        await socket.send_text(orjson.dumps(answer).decode())


async def _answer(episode: Episode, frame: str | bytes, run: Run) -> dict[str, Any] | None:
    """The answer to a frame; None to `close`."""
    try:
        message = _Message.model_validate_json(frame)
        match message.type:
            case "reset":
                request = Reset.model_validate(message.data)
                played = await to_thread.run_sync(episode.reset, request)
                return {"type": "observation", "data": played.model_dump()}
            case "step":
                action = Play.model_validate(message.data)
                played = await run(lambda: episode.step(action))
                return {"type": "observation", "data": played.model_dump()}
            case "state":
                return {"type": "state", "data": episode.state().model_dump()}
            case "mcp":
                answer = await _call_tool(episode, orjson.dumps(message.data), run)
                return {"type": "mcp", "data": answer}
            case "close":
                return None
            case _:
                return _error("UNKNOWN_TYPE", f"unknown message type {message.type[:40]!r}")
    except ValidationError as error:
        return _error("INVALID_JSON" if _no_json(error) else "VALIDATION_ERROR", _where(error))
    except ProblemError as error:
        code = "CAPACITY_REACHED" if error.problem.status == 429 else "EXECUTION_ERROR"
        return _error(code, str(error))


async def _call_tool(episode: Episode, body: bytes, run: Run) -> dict[str, Any]:
    """Answer a JSON-RPC request of MCP. The one tool plays a command; agents do not reset."""
    try:
        call = _Call.model_validate_json(body)
    except ValidationError as error:
        return _rpc_error(None, -32700 if _no_json(error) else -32600, _where(error))
    if call.method == "tools/list":
        tool = {
            "name": "play",
            "description": "Play a command of the game in progress.",
            "inputSchema": Play.model_json_schema(),
        }
        return {"jsonrpc": "2.0", "id": call.id, "result": {"tools": [tool]}}
    if call.method != "tools/call":
        return _rpc_error(call.id, -32601, f"no method {call.method[:40]!r}")
    if call.params.get("name") != "play":
        return _rpc_error(call.id, -32602, "the one tool is `play`")
    try:
        action = Play.model_validate(call.params.get("arguments"))
        played = await run(lambda: episode.step(action))
    except ValidationError as error:
        return _rpc_error(call.id, -32602, _where(error))
    except ProblemError as error:
        content = [{"type": "text", "text": str(error)}]
        result: dict[str, Any] = {"content": content, "isError": True}
    else:
        content = [{"type": "text", "text": played.observation["text"]}]
        structured = played.model_dump()
        result = {"content": content, "structuredContent": structured, "isError": False}
    return {"jsonrpc": "2.0", "id": call.id, "result": result}


def _played(session: Session) -> Played:
    observation = Observation(
        text=session.observation,
        admissible_commands=session.admissible,
        task=session.game.task,
        turn=session.turn,
        won=session.won,
        reward=session.reward,
        done=session.done,
    )
    return Played(
        observation=observation.model_dump(exclude={"reward", "done"}),
        reward=session.reward,
        done=session.done,
    )


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"code": code, "message": message}}


def _rpc_error(call_id: str | int | None, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": call_id, "error": {"code": code, "message": message}}


def _no_json(error: ValidationError) -> bool:
    return error.errors(include_url=False)[0]["type"] == "json_invalid"


def _where(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
