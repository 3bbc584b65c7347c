"""OpenEnv's routes: HTTP, and the conversation over a WebSocket."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError

from agentprm import __version__
from agentprm.protocol import Split
from agentprm.service import ProblemError, json_response, problems
from agentprm.validation import first_error, is_no_json
from services.env.games import Games
from services.env.openenv import mcp
from services.env.openenv.episode import (
    Episode,
    Observation,
    Play,
    Played,
    Reset,
    Run,
    State,
    Step,
)
from services.env.sessions import Sessions


class _Message(BaseModel):
    """A frame from a client."""

    type: str
    data: dict[str, Any] = {}


def routes(sessions: Sessions, games: Games, play: Run, aside: Run) -> APIRouter:
    """OpenEnv's routes, in simulation mode. `aside` calls in a thread, `play` where it has to."""
    router = APIRouter(tags=["OpenEnv"])
    split = next((split for split in Split if games.select(split)), Split.TRAIN)
    shared = Episode(sessions, split, play, aside)

    @router.get("/metadata")
    async def metadata() -> dict[str, str]:
        return {
            "name": games.name,
            "description": games.description,
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

    @router.post("/reset", response_model=Played, responses=problems(404, 409, 429, 500))
    async def reset(request: Reset | None = None) -> Response:
        return json_response(await shared.reset(request or Reset()))

    @router.post("/step", response_model=Played, responses=problems(404, 409, 500))
    async def step(request: Step) -> Response:
        return json_response(await shared.step(request.action))

    @router.get("/state", response_model=State)
    async def state() -> Response:
        return json_response(shared.state())

    @router.post("/mcp")
    async def call(request: Request) -> Response:
        answer = await mcp.answer(shared, await request.body())
        return Response(orjson.dumps(answer), media_type="application/json")

    @router.websocket("/ws")
    async def converse(socket: WebSocket) -> None:
        await socket.accept()
        episode = Episode(sessions, split, play, aside)
        try:
            with suppress(WebSocketDisconnect):
                await _converse(socket, episode, sessions.idle_seconds)
        finally:
            await episode.close()

    return router


async def _converse(socket: WebSocket, episode: Episode, idle_seconds: float) -> None:
    """Answer each frame by a frame, until the client closes or says nothing for too long."""
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                frame = await socket.receive()
        except TimeoutError:
            await socket.close(1008, f"nothing came for {idle_seconds:g} s")
            return
        if frame["type"] == "websocket.disconnect":
            return
        answer = await _answer(episode, frame.get("text") or frame.get("bytes") or b"")
        if answer is None:
            await socket.close()
            return
        await socket.send_text(orjson.dumps(answer).decode())


async def _answer(episode: Episode, frame: str | bytes) -> dict[str, Any] | None:
    """The answer to a frame; None to `close`."""
    try:
        message = _Message.model_validate_json(frame)
        match message.type:
            case "reset":
                request = Reset.model_validate(message.data)
                played = await episode.reset(request)
                return {"type": "observation", "data": played.model_dump()}
            case "step":
                action = Play.model_validate(message.data)
                played = await episode.step(action)
                return {"type": "observation", "data": played.model_dump()}
            case "state":
                return {"type": "state", "data": episode.state().model_dump()}
            case "mcp":
                answer = await mcp.answer(episode, message.data)
                return {"type": "mcp", "data": answer}
            case "close":
                return None
            case _:
                return _error("UNKNOWN_TYPE", f"unknown message type {message.type[:40]!r}")
    except ValidationError as error:
        return _error(
            "INVALID_JSON" if is_no_json(error) else "VALIDATION_ERROR", first_error(error)
        )
    except ProblemError as error:
        code = "CAPACITY_REACHED" if error.problem.status == 429 else "EXECUTION_ERROR"
        return _error(code, str(error))


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"code": code, "message": message}}
