"""What games an environment has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from agentprm.protocol import Game, Split


@dataclass(frozen=True)
class Games(ABC):
    """Games by id, and what an engine has to be told to play one."""

    games: Mapping[str, Game]

    @property
    @abstractmethod
    def name(self) -> str:
        """What the environment is called."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What is played in it, in a sentence."""

    @property
    @abstractmethod
    def data_version(self) -> str:
        """Which edition of the games these are; every episode holds it."""

    @abstractmethod
    def source(self, game: Game) -> str:
        """What `Engine.reset` takes for it."""

    def select(self, split: Split | None = None, task_type: str | None = None) -> list[Game]:
        """Games in order of their ids."""
        return [
            game
            for game in self.games.values()
            if split in (None, game.split) and task_type in (None, game.task_type)
        ]
