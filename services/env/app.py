"""The HTTP side of the environment service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from prometheus_client import Gauge

from agentprm import __version__
from agentprm.protocol import Health, Split
from agentprm.service import create_app
from services.env import openenv
from services.env.engine.base import EngineHost
from services.env.games import Games
from services.env.routes import add_routes
from services.env.sessions import Sessions

REAP_SECONDS = 5.0
WAITING = 64
"""Most requests that take a session's time, or wait for it; those beyond wait for these. Closing,
the list of games and `/health` wait for neither."""

SESSIONS = Gauge("agentprm_env_sessions", "Sessions in play")

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

    app = create_app("env", health, lifespan)
    app.include_router(openenv.routes(sessions, games, play, aside))
    add_routes(app, sessions, games, play, aside, privileged=privileged)
    return app


async def _reap(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(REAP_SECONDS)
        await to_thread.run_sync(sessions.reap)
