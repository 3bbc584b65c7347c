"""An environment of the user's own (`agentprm.environment`) behind the interface of `base`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog
from pydantic import ValidationError

from agentprm.environment import Environment, Frame
from agentprm.protocol import HiddenState, State
from agentprm.validation import first_error
from services.env.engine.base import EngineError, NotToldError, R, T, in_threads

_log = structlog.get_logger()


class OwnHost:
    """Instances of the class: at most `capacity`, of which `pool` play at the same time."""

    waits = True  # nobody knows what the class does in a step

    def __init__(self, environment: type[Environment], capacity: int, pool: int) -> None:
        self.environment = environment
        self.name = f"{environment.__module__}:{environment.__qualname__}"
        self.version = hashlib.sha256(inspect.getsource(environment).encode()).hexdigest()[:12]
        self.capacity = capacity
        self._threads = ThreadPoolExecutor(pool, thread_name_prefix="environment")

    def engine(self) -> OwnEngine:
        """A new engine, with no game yet."""
        return OwnEngine(self)

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`call` on all items at the same time, in threads."""
        return in_threads(self._threads, call, items)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


class OwnEngine:
    """A game in an instance of the class.

    A copy has no instance until its first step: it is made then, by the commands played so far.
    """

    def __init__(self, host: OwnHost) -> None:
        self._host = host
        self._instance: Environment | None = None
        self._game = ""
        self._commands: list[str] = []
        self._last: Frame | None = None

    def reset(self, game: str) -> Frame:
        """Start a game in a new instance."""
        self._game, self._commands = game, []
        self._last = self._begin()
        return self._last

    def step(self, command: str) -> Frame:
        """Play a command."""
        if self._instance is None:
            self._replay()
        self._last = self._play(command)
        self._commands.append(command)
        return self._last

    def fork(self) -> OwnEngine:
        """A copy, which plays the same commands before its first step."""
        copy = OwnEngine(self._host)
        copy._game, copy._commands, copy._last = self._game, list(self._commands), self._last
        return copy

    def hidden_state(self) -> HiddenState:
        """There is no telling where things are."""
        raise NotToldError(f"{self._host.name} tells no hidden state, as ALFWorld does")

    def close(self) -> None:
        """Drop the instance."""
        self._instance = None

    def _begin(self) -> Frame:
        self._instance = self._host.environment()
        return self._asked("reset", self._instance.reset, self._game)

    def _play(self, command: str) -> Frame:
        assert self._instance is not None
        return self._asked("step", self._instance.step, command)

    def _replay(self) -> None:
        frame = self._begin()
        for command in self._commands:
            frame = self._play(command)
        if frame != self._last:
            self._instance = None
            raise EngineError(
                f"{self._host.name} is not deterministic: in game {self._game}, the same "
                f"{len(self._commands)} commands led to something else when they were repeated"
            )

    def _asked(self, what: str, method: Callable[[str], Frame], argument: str) -> Frame:
        """What the class answers. Where it fails, the instance is dropped: the game may be half way
        through the step.

        Raises:
            EngineError: it raises, or its answer is no frame that the services can carry.
        """
        try:
            return _checked(method(argument))
        except Exception as error:  # whatever the class raises
            self._instance = None
            why = first_error(error) if isinstance(error, ValidationError) else repr(error)
            _log.warning("the environment failed", method=what, game=self._game, exc_info=True)
            raise EngineError(f"{self._host.name}.{what}({argument!r}): {why}") from error


def _checked(frame: Frame) -> Frame:
    State(task="", observation=frame.observation, admissible=frame.admissible)
    if not 0 <= frame.reward <= 1:
        raise ValueError(f"a reward of {frame.reward}, which is not in [0, 1]")
    return replace(frame, admissible=tuple(frame.admissible))
