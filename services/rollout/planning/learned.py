"""A world model as the search's model."""

from __future__ import annotations

from collections.abc import Sequence

from agentprm.protocol import Action, Message, Session, Turn, state_of
from agentprm.world import WorldModel, answered, conversation, read_outcome
from services.rollout.planning.model import Arrival, Model, Place, next_state


class LearnedModel(Model[list[Message]]):
    """A place's handle is the conversation with the world model."""

    def __init__(self, world: WorldModel) -> None:
        self._world = world

    def root(self, session: Session, turns: Sequence[Turn]) -> Place[list[Message]]:
        """What really happened is the model's context."""
        state = state_of(session.game.task, turns, session)
        told = conversation(state.task, turns, state.observation, state.admissible)
        return Place(state, session.max_steps - session.turn, told)

    def step(
        self, moves: Sequence[tuple[Place[list[Message]], Action]]
    ) -> list[Arrival[list[Message]] | None]:
        """What the world model answers; it also tells which commands are possible then."""
        answers = self._world.answers([(place.handle, action.command) for place, action in moves])
        return [
            None if answer is None else _arrival(place, action, answer)
            for (place, action), answer in zip(moves, answers, strict=True)
        ]


def _arrival(place: Place[list[Message]], action: Action, answer: str) -> Arrival[list[Message]]:
    outcome = read_outcome(answer, place.state.admissible)
    if outcome.won or place.left == 1:
        return Arrival(float(outcome.won), None)
    state = next_state(place.state, action, outcome.observation, outcome.admissible)
    return Arrival(
        0.0, Place(state, place.left - 1, answered(place.handle, action.command, answer))
    )
