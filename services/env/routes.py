"""The routes of sessions, and the list of games."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import FastAPI, Query, Response
from prometheus_client import Histogram

from agentprm.protocol import (
    ClosedSessions,
    CreateSessions,
    ForkSession,
    GameList,
    HiddenState,
    Session,
    SessionIds,
    SessionList,
    Split,
    StepResults,
    StepSessions,
)
from agentprm.service import ADMIN, ProblemError, json_response, problems, require_admin
from services.env.games import Games
from services.env.openenv.episode import Run
from services.env.sessions import Sessions

STEPS = Histogram(
    "agentprm_env_batch_steps", "Steps in a request", buckets=[2**k for k in range(9)]
)


def add_routes(
    app: FastAPI, sessions: Sessions, games: Games, play: Run, aside: Run, *, privileged: bool
) -> None:
    """Everything below `/v1`. `aside` calls in a thread, `play` where it has to.

    What the expert would do and what is hidden is told by a `privileged` server alone.
    """

    def require_privilege() -> None:
        if not privileged:
            raise ProblemError(
                403,
                "Not privileged",
                "start the server with `--privileged true`, `agentprm up` with `--privileged`",
            )

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
