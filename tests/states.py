"""A state in the words that `tests.models` knows."""

from __future__ import annotations

from agentprm.protocol import Action, State, Step

STATE = State(
    task="put some mug in cabinet",
    history=(
        Step(
            observation="You are in the middle of a room. You see a cabinet 1.",
            action=Action(reason="find mug", command="go to cabinet 1"),
        ),
    ),
    observation="You arrive at cabinet 1. You see a mug 1.",
    admissible=("go to cabinet 1", "go to cabinet 10", "take mug 1 from cabinet 1", "look"),
)
