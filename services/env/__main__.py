"""`python -m services.env`: the environment service."""

from __future__ import annotations

import sys

from agentprm.protocol import Game
from agentprm.service import configure_logging, serve
from services.env.app import build_app
from services.env.engine.base import EngineHost
from services.env.engine.inprocess import CompiledHost
from services.env.engine.textworld import TextWorldHost
from services.env.expert.base import Expert
from services.env.expert.handcoded import HandcodedExpert
from services.env.expert.search import SearchExpert
from services.env.games import DataError, GameIndex
from services.env.sessions import Sessions
from services.env.settings import EnvSettings


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
