"""What a search asks of a model, be it learned or the environment itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from agentprm.protocol import Action, Session, State, Step, Turn

H = TypeVar("H")


@dataclass(frozen=True)
class Place(Generic[H]):
    """A state, the turns that are left in it, and what its model needs to go on from there."""

    state: State
    left: int
    handle: H


@dataclass(frozen=True)
class Arrival(Generic[H]):
    """What follows an action: its reward, and the place, or None where the episode ended."""

    reward: float
    place: Place[H] | None


class Model(ABC, Generic[H]):
    """Tells what follows. The search knows nothing else of it."""

    @abstractmethod
    def root(self, session: Session, turns: Sequence[Turn]) -> Place[H]:
        """Where a game stands: its session, and the turns that were played in it."""

    @abstractmethod
    def step(self, moves: Sequence[tuple[Place[H], Action]]) -> list[Arrival[H] | None]:
        """What follows each action in its place; None where the model cannot tell.

        A place may occur several times, and stays as it is.

        Raises:
            ServiceError: what is asked does not answer.
        """

    def forget(self) -> None:
        """The search is over: its places will not be used again. The roots are not the model's.

        Raises:
            ServiceError: as `step`.
        """


def next_state(state: State, action: Action, observation: str, admissible: Sequence[str]) -> State:
    """s_{t+1}, after `action` in s_t."""
    return State(
        task=state.task,
        history=(*state.history, Step(observation=state.observation, action=action)),
        observation=observation,
        admissible=tuple(admissible),
    )
