"""What an engine is.

An `Engine` plays one game at a time, synchronously and deterministically. An `EngineHost` makes
engines, says how many may live at once, and knows how to run calls on several of them: side by side
where each waits for a process of its own, one after another where a call takes microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

from agentprm.environment import Frame
from agentprm.protocol import HiddenState

T = TypeVar("T")
R = TypeVar("R")


class EngineError(Exception):
    """The engine could not play: it died or hung, and so did its replacements."""


class NotToldError(Exception):
    """The engine does not tell what it was asked for."""


class Engine(Protocol):
    """One game in play. Not to be called by two threads at once."""

    def reset(self, game: str) -> Frame:
        """Start `game`, as `Games.source` names it; any game in play is dropped.

        Raises:
            EngineError: the game cannot be played.
        """

    def step(self, command: str) -> Frame:
        """Play one command. One that is not admissible spends the turn.

        Raises:
            EngineError: there is no answer to be had.
        """

    def fork(self) -> Engine:
        """Another engine with the same game in the same state; neither affects the other.

        Raises:
            EngineError: no game is in play.
        """

    def hidden_state(self) -> HiddenState:
        """Where everything is. Privileged: the agent must not see it.

        Raises:
            NotToldError: the engine keeps it to itself.
            EngineError: there is no answer to be had.
        """

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


def in_threads(pool: ThreadPoolExecutor, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`EngineHost.map` for calls that wait for something else: all at the same time."""
    futures: list[Future[R]] = [pool.submit(call, item) for item in items]
    wait(futures)
    return [future.result() for future in futures]
