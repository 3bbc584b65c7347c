"""What an engine is.

An `Engine` plays one game at a time, synchronously and deterministically. An `EngineHost` makes
engines, says how many may live at once, and knows how to run calls on several of them: side by side
where each waits for a process of its own, one after another where a call takes microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from agentprm.protocol import HiddenState

T = TypeVar("T")
R = TypeVar("R")


class EngineError(Exception):
    """The engine could not play: it died or hung, and so did its replacements."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a game shows after a reset or a step."""

    observation: str
    admissible: tuple[str, ...]
    reward: float
    done: bool
    won: bool
    advice: str | None = None
    """The next command by the engine's own expert, where it has one and was asked for it."""


class Engine(Protocol):
    """One game in play. Not to be called by two threads at once."""

    def reset(self, game: Path) -> Frame:
        """Start the game in the file `game`; any game in play is dropped."""

    def step(self, command: str) -> Frame:
        """Play one command. One that is not admissible spends the turn.

        Raises:
            EngineError: there is no answer to be had.
        """

    def fork(self) -> Engine:
        """Another engine with the same game in the same state; neither affects the other."""

    def hidden_state(self) -> HiddenState:
        """Where everything is. Privileged: the agent must not see it."""

    def close(self) -> None:
        """Give the engine back; it is not used again."""


class EngineHost(Protocol):
    """Makes engines."""

    name: str
    version: str
    capacity: int
    """How many engines may live at once."""
    waits: bool
    """Whether calls wait for other processes; if so, an event loop must leave them to a thread."""

    def engine(self) -> Engine:
        """A new engine, with no game yet."""

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`call` on each item, at the same time where that pays; results in order.

        Every call is carried to its end before the first exception is raised.
        """

    def close(self) -> None:
        """End what the host runs."""
