"""The search expert's way through a game in the compiled engine: shows that it can be won."""

from __future__ import annotations

from services.env.engine.base import Frame
from services.env.engine.compiled import CompiledGame, CompiledState
from services.env.expert.search import SearchExpert
from services.env.games.placement import Placement


def solve(game: CompiledGame, placement: Placement, seed: int, steps: int) -> list[str] | None:
    """The expert's commands up to the win; None if it does not win within `steps`."""
    expert = SearchExpert(game.task, placement, seed)
    state = game.reset()
    expert.observe(None, _frame(state))
    commands: list[str] = []
    while not state.won and len(commands) < steps:
        command = expert.act().command
        state.step(command)
        commands.append(command)
        expert.observe(command, _frame(state))
    return commands if state.won else None


def _frame(state: CompiledState) -> Frame:
    return Frame(
        observation=state.observation,
        admissible=tuple(state.admissible),
        reward=state.reward,
        done=state.done,
        won=state.won,
    )
