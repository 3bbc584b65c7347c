"""`python -m services.env`: the environment service."""

from __future__ import annotations

import sys

from agentprm.protocol import Game
from agentprm.service import configure_logging, serve
from services.env.app import build_app
from services.env.engine.base import EngineHost
from services.env.engine.inprocess import CompiledHost
from services.env.engine.own import OwnHost
from services.env.engine.textworld import TextWorldHost
from services.env.expert.advised import AdvisedExpert
from services.env.expert.base import Expert
from services.env.expert.search import SearchExpert
from services.env.games import DataError, GameIndex, Games
from services.env.games.own import OwnGames, load_environment
from services.env.session import ExpertMaker
from services.env.sessions import Sessions
from services.env.settings import EnvSettings

Parts = tuple[Games, EngineHost, ExpertMaker]
"""What is played, what plays it, and who knows how."""


def _own(name: str, settings: EnvSettings) -> Parts:
    environment = load_environment(name)
    host = OwnHost(environment, settings.capacity, settings.pool)
    return OwnGames.of(environment), host, _advised


def _alfworld(settings: EnvSettings) -> Parts:
    handcoded = settings.expert == "handcoded"
    if handcoded and settings.engine != "textworld":
        raise DataError("--expert handcoded needs --engine textworld")
    if settings.generate:
        from services.env.games.provide import provide  # reads the alfworld package: a second

        provide(settings.data)
    index = GameIndex.open(settings.data, settings.index)

    def search(game: Game, seed: int) -> Expert:
        return SearchExpert(game.task, index.placement, seed)

    expert = _advised if handcoded else search
    if settings.engine == "compiled":
        return index, CompiledHost(settings.capacity), expert
    pool = TextWorldHost(settings.pool, recycle=settings.recycle, handcoded=handcoded)
    return index, pool, expert


def _advised(game: Game, seed: int) -> Expert:
    return AdvisedExpert()


def main() -> None:
    """Serve until SIGTERM. Ends with 2 where there are no games."""
    settings = EnvSettings.from_command_line()
    configure_logging("env", requests=settings.log_requests)
    try:
        own = settings.environment
        games, host, expert = _own(own, settings) if own else _alfworld(settings)
    except (DataError, OSError) as error:
        print(f"services.env: {error}", file=sys.stderr)
        sys.exit(2)
    sessions = Sessions(
        host, games, expert, max_steps=settings.max_steps, idle_seconds=settings.idle_seconds
    )
    app = build_app(sessions, games, host, privileged=settings.privileged)
    serve(app, settings.host, settings.port)


if __name__ == "__main__":
    main()
