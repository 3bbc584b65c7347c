"""The search expert's way through a game in the compiled engine: shows that it can be won."""

from __future__ import annotations

from services.env.engine.compiled import CompiledGame
from services.env.engine.inprocess import frame_of
from services.env.expert.search import SearchExpert
from services.env.games.placement import Placement


def solve(game: CompiledGame, placement: Placement, seed: int, steps: int) -> list[str] | None:
    """The expert's commands up to the win; None if it does not win within `steps`.

    Raises:
        ExpertError: the goal is not one of ALFWorld's templates.
    """
    expert = SearchExpert(game.task, placement, seed)
    state = game.reset()
    expert.observe(None, frame_of(state))
    commands: list[str] = []
    while not state.won and len(commands) < steps:
        command = expert.act().command
        state.step(command)
        commands.append(command)
        expert.observe(command, frame_of(state))
    return commands if state.won else None
