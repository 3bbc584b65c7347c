"""One session: a game in play, its turns and its expert. For one thread at a time."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from agentprm.environment import Frame
from agentprm.protocol import Action, Game, Session, StepSession
from agentprm.service import ProblemError
from services.env.engine.base import Engine
from services.env.expert.base import Expert, ExpertError

ExpertMaker = Callable[[Game, int], Expert]


@dataclass
class LiveSession:
    """A game in play and all that it has answered: `frames[t]` is what was seen before turn t."""

    id: str
    game: Game
    key: str | None
    seed: int
    max_steps: int
    engine: Engine
    make_expert: ExpertMaker
    used: float
    frames: list[Frame] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False
    """Whether nobody may use it any more. Who holds the lock then ends it."""
    ended: bool = False
    """Whether its engine was given back."""
    expert: Expert | None = None
    followed: int = 0
    """How many frames the expert has seen."""

    def answer(self, turn: int, expert: Action | None = None) -> Session:
        """The state after turn `turn`."""
        frame = self.frames[turn]
        return Session(
            id=self.id,
            game=self.game,
            turn=turn,
            observation=frame.observation,
            admissible=list(frame.admissible),
            reward=frame.reward,
            done=self.over(turn),
            won=frame.won,
            truncated=self.over(turn) and not frame.done,
            max_steps=self.max_steps,
            expert=expert,
        )

    @property
    def turn(self) -> int:
        """Turns played."""
        return len(self.commands)

    def over(self, turn: int) -> bool:
        """Whether the session was over after turn `turn`, by the game or the step limit."""
        return self.frames[turn].done or turn >= self.max_steps

    def start(self, game: str, prefix: Sequence[str], name: str) -> None:
        """Reset the engine to `game` and play `prefix`, which a problem calls `name`.

        Raises:
            ProblemError: 422 where a command is not admissible, ends the game, or is one too many.
            EngineError: the engine cannot play it.
        """

        def unplayable(turn: int, reason: str) -> ProblemError:
            detail = f"{name}.{turn}: {prefix[turn]!r} {reason}"
            return ProblemError(422, "Prefix not playable", detail)

        if len(prefix) > self.max_steps:
            raise unplayable(self.max_steps, f"is over the limit of {self.max_steps} turns")
        self.frames.append(self.engine.reset(game))
        for turn, command in enumerate(prefix):
            admissible = self.frames[turn].admissible
            if admissible and command not in admissible:
                raise unplayable(turn, "is not admissible")
            self._play(command)
            if self.frames[-1].done:
                raise unplayable(turn, "ends the game")

    def step(self, step: StepSession) -> None:
        """Play the step's turn, unless it was played before with the same command.

        Raises:
            ProblemError: 409 where the turn does not fit, or the session is over.
            EngineError: the engine cannot play it.
        """
        if step.turn > self.turn:
            detail = f"turn {step.turn} is ahead: the session is at turn {self.turn}"
            raise ProblemError(409, "Turn ahead", detail)
        if step.turn < self.turn:
            if step.command != self.commands[step.turn]:
                detail = f"turn {step.turn} was played with another command"
                raise ProblemError(409, "Turn already played", detail)
        elif self.over(step.turn):
            raise ProblemError(409, "Session over", f"it ended at turn {self.turn}")
        else:
            self._play(step.command)

    def fork(self, used: float) -> LiveSession:
        """An independent copy. Frames never change, so both have the same ones."""
        return replace(
            self,
            id=uuid.uuid4().hex,
            engine=self.engine.fork(),
            used=used,
            frames=list(self.frames),
            commands=list(self.commands),
            lock=threading.Lock(),
            expert=None,
            followed=0,
        )

    def advice(self, turn: int) -> Action | None:
        """What the expert would do at `turn`; None where the session is over.

        Raises:
            ProblemError: 409 where the expert cannot advise.
        """
        if self.over(turn):
            return None
        try:
            if self.expert is None or self.followed > turn + 1:
                self.expert = self.make_expert(self.game, self.seed)
                self.followed = 0
            for t in range(self.followed, turn + 1):
                command = self.commands[t - 1] if t else None
                self.expert.observe(command, self.frames[t])
            self.followed = turn + 1
            return self.expert.act()
        except ExpertError as error:
            raise ProblemError(409, "No advice", str(error)) from error

    def _play(self, command: str) -> None:
        self.frames.append(self.engine.step(command))
        self.commands.append(command)
