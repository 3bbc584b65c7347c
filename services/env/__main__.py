"""`python -m services.env`: the environment service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from agentprm.protocol import Game
from agentprm.service import configure_logging, serve
from agentprm.settings import ServiceSettings
from services.env.app import build_app
from services.env.engine.base import EngineHost
from services.env.engine.inprocess import CompiledHost
from services.env.engine.textworld import TextWorldHost
from services.env.expert.base import Expert
from services.env.expert.handcoded import HandcodedExpert
from services.env.expert.search import SearchExpert
from services.env.games import DataError, GameIndex
from services.env.sessions import Sessions


def _default_data() -> Path:
    """Where alfworld itself would look."""
    return Path(os.environ.get("ALFWORLD_DATA") or "~/.cache/alfworld")


class EnvSettings(ServiceSettings):
    """The environment service: ALFWorld games as sessions over HTTP."""

    port: int = Field(default=8001, description="port to listen on")
    data: Path = Field(
        default_factory=_default_data,
        description="what alfworld-download filled, by default $ALFWORLD_DATA or ~/.cache/alfworld",
    )
    generate: bool = Field(default=False, description="generate games where there are none")
    index: Path | None = Field(
        default=None, description="file that caches the game index, by default beside the data"
    )
    engine: Literal["compiled", "textworld"] = Field(
        default="compiled", description="what plays the games; textworld is the reference"
    )
    capacity: int = Field(default=4096, ge=1, description="most sessions, with the compiled engine")
    pool: int = Field(default=4, ge=1, le=256, description="TextWorld processes, one a session")
    recycle: int = Field(default=50, ge=1, description="games after which a process is replaced")
    max_steps: int = Field(default=30, ge=1, le=200, description="step limit unless a request's")
    idle_seconds: float = Field(default=300.0, gt=0, description="sessions idle longer are closed")
    privileged: bool = Field(default=False, description="offer the expert and the hidden state")
    expert: Literal["search", "handcoded"] = Field(
        default="search", description="by the text alone, or alfworld's own"
    )


def _open_index(settings: EnvSettings) -> GameIndex:
    if settings.generate:
        from services.env.games.provide import provide  # reads the alfworld package: a second

        provide(settings.data)
    return GameIndex.open(settings.data, settings.index)


def main() -> None:
    """Serve until SIGTERM. Ends with 2 where there are no games."""
    settings = EnvSettings.from_command_line()
    configure_logging("env", requests=settings.log_requests)
    try:
        index = _open_index(settings)
    except (DataError, OSError) as error:
        print(f"services.env: {error}", file=sys.stderr)
        sys.exit(2)

    def expert(game: Game, seed: int) -> Expert:
        if settings.expert == "handcoded":
            return HandcodedExpert()
        return SearchExpert(game.task, index.placement, seed)

    handcoded = settings.expert == "handcoded"
    if handcoded and settings.engine != "textworld":
        print("services.env: --expert handcoded needs --engine textworld", file=sys.stderr)
        sys.exit(2)
    host: EngineHost
    if settings.engine == "textworld":
        host = TextWorldHost(settings.pool, recycle=settings.recycle, handcoded=handcoded)
    else:
        host = CompiledHost(settings.capacity)
    sessions = Sessions(
        host, index, expert, max_steps=settings.max_steps, idle_seconds=settings.idle_seconds
    )
    app = build_app(sessions, index, host, privileged=settings.privileged)
    serve(app, settings.host, settings.port)


if __name__ == "__main__":
    main()
