"""The compiled engine behind the interface of `base`: thousands of games in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from agentprm import __version__
from agentprm.environment import Frame
from agentprm.protocol import HiddenState
from services.env.engine.base import EngineError, R, T
from services.env.engine.compiled import CompiledGame, CompiledState, GameFileError

PARSED = 512
"""Parsed games that are kept; parsing one again takes some milliseconds."""


class CompiledHost:
    """Any number of games up to `capacity`, played one call after another."""

    name = "compiled"
    waits = False
    version = f"agentprm {__version__}"

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def engine(self) -> CompiledEngine:
        """A new engine, with no game yet."""
        return CompiledEngine()

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`call` on each item in turn: handing one to a thread costs more than playing it."""
        results: list[R] = []
        failure: Exception | None = None
        for item in items:
            try:
                results.append(call(item))
            except Exception as error:  # every call is carried to its end first
                failure = failure or error
        if failure is not None:
            raise failure
        return results

    def close(self) -> None:
        """Nothing runs."""


class CompiledEngine:
    """One game in play."""

    def __init__(self, state: CompiledState | None = None) -> None:
        self._state = state

    def reset(self, game: str) -> Frame:
        """Start the game in a file; 0.1 ms, and some milliseconds where that has to be parsed.

        Raises:
            EngineError: the file is not a game.
        """
        self._state = _parsed(Path(game)).reset()
        return frame_of(self._state)

    def step(self, command: str) -> Frame:
        """Play a command; some 20 µs.

        Raises:
            EngineError: no game is in play.
        """
        self._playing.step(command)
        return frame_of(self._playing)

    def fork(self) -> CompiledEngine:
        """A copy; some 5 µs.

        Raises:
            EngineError: no game is in play.
        """
        return CompiledEngine(self._playing.fork())

    def hidden_state(self) -> HiddenState:
        """Where everything is.

        Raises:
            EngineError: no game is in play.
        """
        return HiddenState.model_validate(self._playing.hidden_state())

    def close(self) -> None:
        """Forget the game."""
        self._state = None

    @property
    def _playing(self) -> CompiledState:
        if self._state is None:
            raise EngineError("no game is in play")
        return self._state


@lru_cache(maxsize=PARSED)
def _parsed(path: Path) -> CompiledGame:
    try:
        return CompiledGame.parse(path)
    except (GameFileError, OSError) as error:
        raise EngineError(str(error)) from error


def frame_of(state: CompiledState) -> Frame:
    """What the state shows."""
    return Frame(
        observation=state.observation,
        admissible=tuple(state.admissible),
        reward=state.reward,
        done=state.done,
        won=state.won,
    )
