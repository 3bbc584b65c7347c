"""An environment of the user's own (`agentprm.environment`) behind the interface of `base`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from pydantic import Field, ValidationError, model_validator

from agentprm.environment import Environment, Frame
from agentprm.protocol import (
    MAX_COMMANDS,
    MAX_RETURN,
    Action,
    Command,
    HiddenState,
    Probability,
    Record,
    Text,
)
from agentprm.validation import first_error
from services.env.engine.base import EngineError, NotToldError, R, T, in_threads

_SINGLE = 1e-6
"""What rewards in single precision may add up to beyond 1, as three of a third do."""
_MAX_WHY = 500
"""Characters of an error that are told; the log has all of it."""

_log = structlog.get_logger()


class OwnHost:
    """Instances of the class: at most `capacity`, of which `pool` play at the same time."""

    waits = True  # nobody knows what the class does in a step

    def __init__(self, environment: type[Environment], capacity: int, pool: int) -> None:
        self.environment = environment
        self.name = f"{environment.__module__}:{environment.__qualname__}"
        module = Path(inspect.getfile(environment))
        self.version = hashlib.sha256(module.read_bytes()).hexdigest()[:12]
        self.capacity = capacity
        self._threads = ThreadPoolExecutor(pool, thread_name_prefix="environment")

    def engine(self) -> OwnEngine:
        """A new engine, with no game yet."""
        return OwnEngine(self)

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`call` on all items, as many at the same time as there are threads."""
        return in_threads(self._threads, call, items)

    def close(self) -> None:
        """Threads end when they have nothing to do; one whose call does not end stays."""
        self._threads.shutdown(wait=False)


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
        self._rewards = 0.0

    def reset(self, game: str) -> Frame:
        """Start a game in a new instance.

        Raises:
            EngineError: the class fails, or the game is over before its first turn.
        """
        self._game, self._commands = game, []
        self._last = self._begin()
        if self._last.done:
            raise EngineError(f"{self._host.name}: {game} is over before its first turn")
        return self._last

    def step(self, command: str) -> Frame:
        """Play a command.

        Raises:
            EngineError: the class fails, or a copy does not come to where its original was.
        """
        if self._instance is None:
            self._replay()
        self._last = self._play(command)
        self._commands.append(command)
        return self._last

    def fork(self) -> OwnEngine:
        """A copy, which plays the same commands before its first step."""
        copy = OwnEngine(self._host)
        copy._game, copy._commands, copy._last = self._game, [*self._commands], self._last
        return copy

    def hidden_state(self) -> HiddenState:
        """There is no telling where things are.

        Raises:
            NotToldError: always.
        """
        raise NotToldError(f"{self._host.name} tells no hidden state, as ALFWorld does")

    def close(self) -> None:
        """Drop the instance."""
        self._instance = None

    def _begin(self) -> Frame:
        self._rewards = 0.0
        return self._asked("reset", self._made_and_reset, self._game)

    def _made_and_reset(self, game: str) -> Frame:
        self._instance = self._host.environment()
        return self._instance.reset(game)

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
            answer: Any = method(argument)
            if not isinstance(answer, Mapping) and not hasattr(answer, "observation"):
                raise TypeError(_no_frame(answer))
            frame = _Carried.model_validate(answer, from_attributes=True)
            total = self._rewards + frame.reward
            if total > MAX_RETURN + _SINGLE:
                raise ValueError(
                    f"the rewards of the episode add up to {total:.7g}, and may to 1: divide them "
                    "by the largest sum"
                )
            if frame.done and frame.won and total == 0:
                raise ValueError(
                    "the episode is won, and its rewards add up to 0: Q is learned from rewards, "
                    "so give the frame that wins reward=1.0"
                )
            reward = min(frame.reward, max(1.0 - self._rewards, 0.0))
            self._rewards += reward
            return Frame(**dict(frame) | {"reward": reward})
        except BaseException as error:  # whatever the class raises, in a thread of its own
            self._instance = None
            why = first_error(error) if isinstance(error, ValidationError) else repr(error)
            _log.warning("the environment failed", method=what, game=self._game, exc_info=True)
            raise EngineError(
                f"{self._host.name}.{what}({argument!r}): {why[:_MAX_WHY]}"
            ) from error


def _no_frame(answer: object) -> str:
    """What is wrong with an answer that is none, as two slips make them."""
    if inspect.iscoroutine(answer):
        answer.close()
        return "it is `async def`; write `def`, in which waiting is allowed"
    return f"it returns {type(answer).__name__}, not a Frame"


class _Carried(Record):
    """A frame that the services can carry."""

    observation: Text
    admissible: tuple[Command, ...] = Field(max_length=MAX_COMMANDS)
    reward: Probability
    done: bool
    won: bool
    advice: Action | None

    @model_validator(mode="after")
    def _advice_can_be_followed(self) -> _Carried:
        command = "" if self.advice is None else self.advice.command
        if "\n" in command and command not in self.admissible:
            raise ValueError(
                "advice: a command that is not among the admissible ones is one line, as the "
                "policy writes it behind ACTION"
            )
        return self
