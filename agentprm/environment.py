"""An environment of your own, for agents that are trained, served and measured elsewhere than in
ALFWorld: a class with three methods, given to the commands as `--games my_module:MyClass`.

    class Sorting:
        @staticmethod
        def games() -> Iterable[Game]: ...

        def reset(self, game: str) -> Frame: ...

        def step(self, command: str) -> Frame: ...

The environment service makes of it what it makes of ALFWorld: sessions whose steps are safe to
repeat, copies of them, OpenEnv. See docs/own-environment.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from agentprm.protocol import Action, Game, Split

__all__ = ["ALFWORLD", "Action", "Environment", "Frame", "Game", "Split"]

ALFWORLD = "alfworld"
"""What the environment service calls the one that comes with it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What is seen after a reset or a step."""

    observation: str
    admissible: tuple[str, ...] = ()
    """The commands possible now; none where any text may be tried."""
    reward: float = 0.0
    """Of the step, in [0, 1]; the sum over an episode is at most 1, and above 0 where it is won."""
    done: bool = False
    won: bool = False
    """Whether the task is solved: what success rates count."""
    advice: Action | None = None
    """What an expert would do next, where one is at hand: demonstrations are made of it. The
    command is one line, or one of `admissible`."""


class Environment(Protocol):
    """Plays one game at a time. Every session has an instance of its own, made without arguments,
    and no two threads call it at once.

    It is deterministic: in one game the same commands lead to the same frames, for a copy of a
    session is made by playing its commands again.
    """

    @staticmethod
    def games() -> Iterable[Game]:
        """Which games there are: those of `train` to learn from, of `valid_seen` to report on."""

    def reset(self, game: str) -> Frame:
        """Begin the game with the id `game`; any game in play is dropped."""

    def step(self, command: str) -> Frame:
        """Carry out a command. One that is not possible spends the turn."""
