"""The HTTP side of the environment service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Response
from prometheus_client import Gauge, Histogram

from agentprm import __version__
from agentprm.protocol import (
    ClosedSessions,
    CreateSessions,
    ForkSession,
    GameList,
    Health,
    HiddenState,
    Session,
    SessionIds,
    SessionList,
    Split,
    StepResults,
    StepSessions,
)
from agentprm.service import (
    ADMIN,
    ProblemError,
    create_app,
    json_response,
    problems,
    require_admin,
)
from services.env import openenv
from services.env.engine.base import EngineHost
from services.env.games import Games
from services.env.sessions import Sessions

REAP_SECONDS = 5.0
WAITING = 64
"""Most requests that take a session's time, or wait for it; those beyond wait for these. Closing,
the list of games and `/health` wait for neither."""

SESSIONS = Gauge("agentprm_env_sessions", "Sessions in play")
STEPS = Histogram(
    "agentprm_env_batch_steps", "Steps in a request", buckets=[2**k for k in range(9)]
)

T = TypeVar("T")


def build_app(
    sessions: Sessions, games: Games, host: EngineHost, *, privileged: bool = False
) -> FastAPI:
    """The service over these sessions. Closes them and the host when it ends.

    Steps and forks of an engine in this process are done in the event loop: they take less time
    than handing them to a thread. What may take longer is left to threads, so that `/health`
    answers meanwhile.
    """
    facts: dict[str, str | int | float | bool | None] = {
        "engine": host.name,
        "engine_version": host.version,
        "environment": games.name,
        "data_version": games.data_version,
        "capacity": host.capacity,
        "privileged": privileged,
        **{f"games_{split}": len(games.select(split)) for split in Split},
    }

    SESSIONS.set_function(lambda: len(sessions))

    def health() -> Health:
        return Health(
            service="env",
            status="healthy",
            package_version=__version__,
            details=facts | {"sessions": len(sessions)},
        )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reaper = asyncio.create_task(_reap(sessions))
        yield
        reaper.cancel()
        with suppress(asyncio.CancelledError):
            await reaper
        await to_thread.run_sync(sessions.close_all)
        await to_thread.run_sync(host.close)

    waiting = CapacityLimiter(WAITING)

    async def aside(call: Callable[[], T]) -> T:
        """A call that takes an engine's time: in a thread."""
        return await to_thread.run_sync(call, limiter=waiting)

    async def play(call: Callable[[], T]) -> T:
        """A call that is quick unless the engine waits for another process."""
        return await aside(call) if host.waits else call()

    def require_privilege() -> None:
        if not privileged:
            raise ProblemError(
                403,
                "Not privileged",
                "start the server with `--privileged true`, `agentprm up` with `--privileged`",
            )

    app = create_app("env", health, lifespan)

    app.include_router(openenv.routes(sessions, games, play, aside))

    @app.get("/v1/games", response_model=GameList)
    def list_games(
        split: Split | None = None,
        task_type: Annotated[str | None, Query(max_length=100)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        found = games.select(split, task_type)
        return json_response(GameList(games=found[offset : offset + limit], total=len(found)))

    @app.post("/v1/sessions", response_model=SessionList, responses=problems(404, 409, 429, 500))
    async def create(request: CreateSessions) -> Response:
        return json_response(SessionList(sessions=await aside(lambda: sessions.create(request))))

    @app.post(
        "/v1/sessions/fork", response_model=SessionList, responses=problems(404, 409, 429, 500)
    )
    async def fork(request: ForkSession) -> Response:
        return json_response(SessionList(sessions=await play(lambda: sessions.fork(request))))

    @app.post("/v1/steps", response_model=StepResults, responses=problems(403))
    async def step(request: StepSessions) -> Response:
        if request.expert:
            require_admin()
            require_privilege()
        STEPS.observe(len(request.steps))
        results = await play(lambda: sessions.step(request.steps, expert=request.expert))
        return json_response(StepResults(results=results))

    @app.post(
        "/v1/sessions/expert",
        response_model=SessionList,
        responses=problems(403, 404, 409),
        dependencies=[ADMIN],
    )
    async def experts(request: SessionIds) -> Response:
        require_privilege()
        answers = await aside(lambda: [sessions.get(name, expert=True) for name in request.ids])
        return json_response(SessionList(sessions=answers))

    @app.post("/v1/sessions/close", response_model=ClosedSessions)
    def close(request: SessionIds) -> Response:
        return json_response(ClosedSessions(ids=sessions.close(request.ids)))

    @app.get("/v1/sessions/{session_id}", response_model=Session, responses=problems(404))
    async def get(session_id: str) -> Response:
        return json_response(await aside(lambda: sessions.get(session_id)))

    @app.delete("/v1/sessions/{session_id}", response_model=Session, responses=problems(404, 503))
    async def delete(session_id: str) -> Response:
        try:
            answer = await aside(lambda: sessions.get(session_id))
        finally:  # also where a step is under way that does not end
            await to_thread.run_sync(sessions.close, [session_id])
        return json_response(answer)

    @app.get(
        "/v1/sessions/{session_id}/hidden",
        response_model=HiddenState,
        responses=problems(403, 404, 409, 500),
        dependencies=[ADMIN],
    )
    async def hidden(session_id: str) -> Response:
        require_privilege()
        return json_response(await aside(lambda: sessions.hidden(session_id)))

    return app


async def _reap(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(REAP_SECONDS)
        await to_thread.run_sync(sessions.reap)
