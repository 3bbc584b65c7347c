"""The environment service: games, sessions and their steps."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from agentprm.protocol._base import (
    MAX_BATCH,
    MAX_STEPS,
    Command,
    Id,
    Many,
    Prefix,
    Record,
    Request,
    Seed,
)
from agentprm.protocol._problem import Problem
from agentprm.protocol._states import Action


class Split(StrEnum):
    """ALFWorld's splits, by the directory names that `alfworld-download` makes."""

    TRAIN = "train"
    VALID_SEEN = "valid_seen"
    VALID_UNSEEN = "valid_unseen"


class Game(Record):
    """A game of the index.

    `id` is in ALFWorld `split/task directory/trial directory`, elsewhere what the environment says.
    """

    id: str
    split: Split
    task_type: str
    task: str


class GameList(Record):
    """A page of the index, and how many games match in all."""

    games: list[Game]
    total: int


class CreateSessions(Request):
    """Either the games by id, or `count` games of a split in the order that `seed` shuffles.

    Sessions made before with the same `key` are closed first: a client that lost the answer, or
    took over the work of one that died, leaves none behind. Session k's expert varies with
    `seed + k`.

    `prefixes[k]` are commands to play in `games[k]` before the session is handed out, at turn
    `len(prefixes[k])`: a state that was reached before is reached again. Every one of them must be
    admissible when it is played, and none may end the game.
    """

    games: Many[Id] | None = Field(default=None, min_length=1, max_length=MAX_BATCH)
    prefixes: Many[Prefix] | None = Field(default=None, max_length=MAX_BATCH)
    split: Split | None = None
    seed: Seed = 0
    count: int = Field(default=1, ge=1, le=MAX_BATCH)
    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    key: str | None = Field(default=None, max_length=200)

    @model_validator(mode="after")
    def _one_way(self) -> CreateSessions:
        if (self.games is None) == (self.split is None):
            raise ValueError("give either `games` or `split`")
        if self.prefixes is not None and len(self.prefixes) != len(self.games or ()):
            raise ValueError("give one prefix for each of `games`")
        return self


class ForkSession(Request):
    """Make `count` copies of a session at its present turn.

    A copy repeats the recorded answers of the turns before, has the seed and the `key` of its
    original, and goes its own way from there.
    """

    id: Id
    count: int = Field(default=1, ge=1, le=MAX_BATCH)


class Session(Record):
    """A session after its turn `turn`: what the agent sees, and how things stand."""

    id: str
    game: Game
    turn: int
    observation: str
    admissible: list[str]
    reward: float
    done: bool
    won: bool
    truncated: bool
    """Ended by the step limit and not by the game."""
    max_steps: int
    expert: Action | None = None
    """The expert's next action; only where the server is privileged and was asked for it."""


class SessionList(Record):
    """Answers to a batch, in its order."""

    sessions: list[Session]


class StepSession(Request):
    """Play `command` at turn `turn`. Repeating a turn returns its recorded answer."""

    id: Id
    turn: int = Field(ge=0)
    command: Command


class StepSessions(Request):
    """A batch of steps; one session at most once."""

    steps: Many[StepSession] = Field(min_length=1, max_length=MAX_BATCH)
    expert: bool = False


class StepResult(Record):
    """One session's answer within a batch: a session or a problem, never both."""

    id: str
    session: Session | None = None
    problem: Problem | None = None


class StepResults(Record):
    """Answers to a batch of steps, in its order."""

    results: list[StepResult]


class HiddenState(Record):
    """Where everything is, by the names the agent reads; only from a privileged server."""

    agent: list[str]
    """The receptacles within reach; none in the middle of the room."""
    holding: str | None
    objects: dict[str, str]
    """The receptacle of every object that lies in or on one."""
    open: list[str]
    hot: list[str]
    cool: list[str]
    clean: list[str]
    on: list[str]


class ClosedSessions(Record):
    """The sessions that were open and are closed now."""

    ids: list[str]


class SessionIds(Request):
    """Sessions to close or to ask about."""

    ids: Many[Id] = Field(min_length=1, max_length=MAX_BATCH)
