"""An episode as OpenEnv sees it, played in a session."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from anyio import to_thread
from pydantic import BaseModel, Field

from agentprm.protocol import (
    MAX_STEPS,
    Command,
    CreateSessions,
    Id,
    Request,
    Seed,
    Session,
    Split,
    StepSession,
)
from agentprm.service import ProblemError
from services.env.sessions import Sessions

T = TypeVar("T")


class Run(Protocol):
    """How to call the sessions from an event loop."""

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of `call`."""


class Play(Request):
    """An action: one command of the game."""

    command: Command
    metadata: dict[str, Any] = Field(default={})


class Observation(BaseModel):
    """What the agent sees. On the wire `reward` and `done` stand beside the observation."""

    text: str
    admissible_commands: list[str]
    task: str
    turn: int
    won: bool
    reward: float
    done: bool
    metadata: dict[str, Any] = {}


class Played(BaseModel):
    """The answer to a reset or a step."""

    observation: dict[str, Any]
    reward: float
    done: bool


class State(BaseModel):
    """How far the episode is; without an id before the first reset."""

    episode_id: str | None = None
    step_count: int = 0
    game: str | None = None
    max_steps: int | None = None


class Reset(BaseModel):
    """Play `game`, or else a game of `split` that `seed` draws. Other fields are passed over."""

    seed: Seed | None = None
    episode_id: str | None = Field(default=None, max_length=255)
    game: Id | None = None
    split: Split | None = None
    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)


class Step(BaseModel):
    """Play an action. Other fields are passed over."""

    action: Play


class Episode:
    """One game at a time, each in a session that the next reset closes."""

    def __init__(self, sessions: Sessions, split: Split, play: Run, aside: Run) -> None:
        """Games are those of `split` where a reset does not say."""
        self._sessions = sessions
        self._play = play
        self._aside = aside
        self._split = split
        self._key = f"openenv {uuid.uuid4().hex}"
        self._session: Session | None = None
        self._id: str | None = None

    async def reset(self, request: Reset) -> Played:
        """Start a game.

        Raises:
            ProblemError: as `Sessions.create`.
        """
        seed = random.randrange(2**31) if request.seed is None else request.seed
        new = CreateSessions(
            games=None if request.game is None else [request.game],
            split=(request.split or self._split) if request.game is None else None,
            seed=seed,
            max_steps=request.max_steps,
            key=self._key,
        )
        (self._session,) = await self._aside(lambda: self._sessions.create(new))
        self._id = request.episode_id or self._session.id
        return _played(self._session)

    async def step(self, action: Play) -> Played:
        """Play a command.

        Raises:
            ProblemError: 409, no game is in play or this one is over; or as a step of its session.
        """
        if self._session is None:
            raise ProblemError(409, "No episode", "reset before the first step")
        step = StepSession(id=self._session.id, turn=self._session.turn, command=action.command)
        (result,) = await self._play(lambda: self._sessions.step([step]))
        if result.problem is not None:
            raise ProblemError(result.problem.status, result.problem.title, result.problem.detail)
        assert result.session is not None
        self._session = result.session
        return _played(result.session)

    def state(self) -> State:
        """How far it is."""
        if self._session is None:
            return State()
        return State(
            episode_id=self._id,
            step_count=self._session.turn,
            game=self._session.game.id,
            max_steps=self._session.max_steps,
        )

    async def close(self) -> None:
        """Give the session back."""
        if self._session is not None:
            await to_thread.run_sync(self._sessions.close, [self._session.id])


def _played(session: Session) -> Played:
    observation = Observation(
        text=session.observation,
        admissible_commands=session.admissible,
        task=session.game.task,
        turn=session.turn,
        won=session.won,
        reward=session.reward,
        done=session.done,
    )
    return Played(
        observation=observation.model_dump(exclude={"reward", "done"}),
        reward=session.reward,
        done=session.done,
    )
